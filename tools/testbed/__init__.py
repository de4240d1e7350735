"""A test bed: several machines on this one, each reachable over ssh, and a laptop beside them."""
