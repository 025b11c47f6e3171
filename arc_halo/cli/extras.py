"""What commands need besides the package: named in one line where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from arc_halo.errors import ConfigurationError


def require_transformers(what: str) -> None:
    """Raise `ConfigurationError` unless models of transformers can be loaded; ``what`` needs it."""
    if any(find_spec(name) is None for name in ("torch", "transformers")):
        raise ConfigurationError(f"{what} by transformers and torch: pip install 'arc-halo[transformers]'")


def require_endpoints(what: str) -> None:
    """Raise `ConfigurationError` unless endpoints can be asked; ``what`` needs it."""
    if find_spec("httpx") is None:
        raise ConfigurationError(f"{what} by httpx: pip install 'arc-halo[endpoints]'")
