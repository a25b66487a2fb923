"""Where keys and values lie: the host pool, the resident set on the device, and the copies between them."""
