"""Decoded tensors on this machine, which load_model maps."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from arc_halo.cli.cache.application import app
from arc_halo.cli.output import Json, count, print_json, say, shown, size

if TYPE_CHECKING:
    from arc_halo.store.cache import ReadCache


@app.command("files")
def files(
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Remove them; who uses some is not disturbed.")] = False,
    json: Json = False,
) -> None:
    """Show where load_model keeps decoded tensors on this machine, and how full that is.

    Example: arc-halo cache files
    """
    from arc_halo.registry.loading import configured_cache

    cache = configured_cache()
    if clear:
        _clear(cache, json=json)
    elif json:
        print_json({"folder": cache and cache.folder, "use": cache and cache.use()})
    elif cache is None:
        say("no cache: ARC_HALO_CACHE_NBYTES is 0")
    else:
        use = cache.use()
        say(f"{shown(str(cache.folder))}: {count(use.files, 'tensor')}, {size(use.nbytes)} of {size(use.max_nbytes)}")


def _clear(cache: ReadCache | None, *, json: bool) -> None:
    use = None if cache is None else cache.clear()
    if json:
        print_json({"removed": use})
    else:
        say("nothing to remove" if use is None else f"removed {count(use.files, 'tensor')}, {size(use.nbytes)}")
