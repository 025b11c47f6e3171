"""The plugins of this test suite."""

pytest_plugins = ["arc_halo.testing.databases"]
