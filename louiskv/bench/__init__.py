"""How fast: methods side by side in one run, interleaved, with the machine and the versions beside the figures."""
