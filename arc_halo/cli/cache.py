"""``arc-halo cache``: decoded tensors on this machine."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import typer

from arc_halo.cli.output import Json, count, print_json, say, shown, size

app = typer.Typer(no_args_is_help=True, help="Decoded tensors on this machine, which load_model maps.")


@app.command("status")
def status(*, json: Json = False) -> None:
    """Show where the cache is, and how full.

    Example: arc-halo cache status
    """
    from arc_halo.registry.loading import configured_cache

    cache = configured_cache()
    if json:
        print_json({"folder": cache and cache.folder, "use": cache and cache.use()})
    elif cache is None:
        say("no cache: ARC_HALO_CACHE_NBYTES is 0")
    else:
        use = cache.use()
        say(f"{shown(str(cache.folder))}: {count(use.files, 'tensor')}, {size(use.nbytes)} of {size(use.max_nbytes)}")


@app.command("clear")
def clear(*, json: Json = False) -> None:
    """Remove everything from the cache; processes that use it are not disturbed.

    Example: arc-halo cache clear
    """
    from arc_halo.registry.loading import configured_cache

    cache = configured_cache()
    use = None if cache is None else cache.clear()
    if json:
        print_json({"removed": use})
    else:
        say("nothing to remove" if use is None else f"removed {count(use.files, 'tensor')}, {size(use.nbytes)}")
