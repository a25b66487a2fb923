"""Files of requests, answered without a server: each line of the input has a line of the output."""
