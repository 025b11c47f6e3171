"""Where a model was imported from: a note beside its config, read by people and never opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from arc_halo.formats.hub import HubSnapshot

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from arc_halo.schema import Model

ORIGIN_KEY: Final = "_arc_halo_origin"
"""The one key of ``models.architecture_config`` that is not of ``config.json``."""


def with_origin(config: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The config with a note of the hub's repository and commit, if it came from there.

    A note that the file itself holds is dropped: anybody could have written it.
    """
    noted = {ORIGIN_KEY: dict(path.origin)} if isinstance(path, HubSnapshot) else {}
    return without_origin(config) | noted


def without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as its file has it, for exports and for models made from this one."""
    return {key: value for key, value in config.items() if key != ORIGIN_KEY}


def origin_of(model: Model) -> dict[str, str] | None:
    """``source``, ``commit`` and, as they were asked for, ``revision`` and ``path``; None for a model from files."""
    return model.architecture_config.get(ORIGIN_KEY)
