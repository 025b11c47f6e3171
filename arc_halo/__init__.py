"""Arc-Halo."""
