"""``python -m arc_halo`` is the ``arc-halo`` command."""

from arc_halo.cli import main

main()
