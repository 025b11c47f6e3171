"""Errors of ``huggingface_hub``, and that it is missing, as errors of ours that say how to go on."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import (
    ArcHaloError,
    ConfigurationError,
    HubAccessDenied,
    HubError,
    HubModelNotFound,
    HubUnavailable,
    InvalidName,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

TOKEN_ADVICE = "put a token that may into HF_TOKEN"  # noqa: S105  # advice, no token
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# In this order: a gated repository is also one that is not found.
_KNOWN: Final[tuple[tuple[str, type[HubError], str], ...]] = (
    ("GatedRepoError", HubAccessDenied, f"is gated: ask for access on its page, then {TOKEN_ADVICE}"),
    ("RevisionNotFoundError", HubModelNotFound, "has no such revision; give a branch, a tag or the hash of a commit"),
    (
        "RepositoryNotFoundError",
        HubModelNotFound,
        f"is not on the hub, or not for you; check its name, or {TOKEN_ADVICE}",
    ),
    ("RemoteEntryNotFoundError", HubModelNotFound, "is not there any more; check its revision"),
    (
        "OfflineModeIsEnabled",
        HubUnavailable,
        "is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it to download",
    ),
)


def load_library() -> ModuleType:
    """``huggingface_hub``, imported when the hub is first asked.

    Raises
    ------
    ConfigurationError
        It is not installed.
    """
    try:
        import huggingface_hub  # noqa: PLC0415  # an extra
        import huggingface_hub.errors  # noqa: PLC0415
        import huggingface_hub.utils  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError("the hub is reached by huggingface_hub: pip install 'arc-halo[hub]'") from error
    return huggingface_hub


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise what the library raises as errors of ours; ``what`` is the source they are about.

    Their own messages are left out, of tracebacks too: they quote URLs, and that of a file may be a signed one.
    """
    try:
        yield
    except ArcHaloError:
        raise
    except (OSError, ValueError, _http_error()) as error:
        raise _explain(error, what) from None
    except RuntimeError as error:  # of an upload, around what it was
        if not isinstance(error.__cause__, (OSError, _http_error())):
            raise
        raise _explain(error.__cause__, what) from None


def _http_error() -> type[Exception]:
    """The root of what its HTTP client raises, whichever client that is."""
    kind: type[Exception] = load_library().errors.HTTPError
    return kind


def _explain(error: Exception, what: str) -> ArcHaloError:
    errors: Any = load_library().errors
    for each in (error, error.__cause__):
        for name, kind, message in _KNOWN:
            if isinstance(each, getattr(errors, name)):
                return kind(f"{what} {message}")
        if isinstance(each, errors.HfHubHTTPError):
            return _explain_status(each.response.status_code, what)
    if isinstance(error, (_http_error(), errors.LocalEntryNotFoundError)):
        reason = type(error.__cause__ or error).__name__
        return HubUnavailable(
            f"{what}: the hub cannot be reached, or the connection was lost ({reason}); "
            "run it again, files that are complete are kept"
        )
    if isinstance(error, OSError):
        return _explain_file(error, what)
    return InvalidName(f"{what} is refused by huggingface_hub ({type(error).__name__}); check the name")


def _explain_status(status: int, what: str) -> ArcHaloError:
    match status:
        case 401 | 403:
            return HubAccessDenied(f"{what}: the hub refuses access ({status}); {TOKEN_ADVICE}")
        case 404:
            return HubModelNotFound(f"{what}: the hub does not have it any more; check the name and the revision")
        case 409 | 412:
            return HubError(f"{what}: somebody else has changed the repository meanwhile ({status}); run it again")
        case 408 | 429:
            return HubUnavailable(f"{what}: the hub asks to wait ({status}); run it again later, or {TOKEN_ADVICE}")
        case _:
            return HubUnavailable(f"{what}: the hub answers with status {status}; run it again later")


def _explain_file(error: OSError, what: str) -> ArcHaloError:
    if error.errno in _NO_SPACE:
        return HubError(f"{what}: no space is left for it; free some, or let HF_HUB_CACHE name a larger disk")
    if error.errno is None:  # a length that is not the one that was announced
        return HubUnavailable(f"{what}: a file came incomplete; run it again, files that are complete are kept")
    where = f" {error.filename}" if error.filename else ""
    return HubError(f"{what}: {error.strerror}{where}; let HF_HUB_CACHE name a folder that you may write")
