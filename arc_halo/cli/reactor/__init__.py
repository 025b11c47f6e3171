"""``arc-halo reactor``: reactors on the command line."""
