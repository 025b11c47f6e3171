"""``arc-halo demo``: a real model's life in PostgreSQL, one chapter in each file.

Input
    The model that is shown, and tokens whose neighbours tell something.
Step
    What is said before something is done, and the seconds that it took.
"""

from arc_halo.cli.demo.application import demo

__all__ = ["demo"]
