"""How tokens are grouped: clusters of the prompt, segments of the output, and the index that summarises them."""
