"""What may be said of a reactor, its members and edges, and what is refused in a sentence."""

from __future__ import annotations

import json
import math
import re
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, TypedDict, get_args

from arc_halo.errors import FusionError
from arc_halo.fusion.plan import Interaction, ReactorConfig
from arc_halo.fusion.strategies.known import strategy_named
from arc_halo.schema.fusion import MEMBER_ROLES

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping

    from arc_halo.schema import Model

STATUSES: Final = ("draft", "active", "paused", "retired")
_MAX_NAME_LENGTH: Final = 200  # four bytes each fit into an index
_MAX_PRIORITY: Final = 2**31 - 1
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class MemberDefinition(TypedDict, total=False):
    """What a member is; what is left out has the defaults of `add_member`.

    Attributes
    ----------
    model
        The version that answers; of ``name`` or ``name@alias`` the one that this is now, also later.
    endpoint
        Name of what answers, in the place of a model. Beside one it is what is asked, for that version.
    role
        One of `MEMBER_ROLES`.
    weight
        How much its answer counts, 0 or more.
    priority
        Smaller goes first.
    """

    model: Model | uuid.UUID | str | None
    endpoint: str | None
    role: str
    weight: float
    priority: int
    config: Mapping[str, Any] | None


class MemberChanges(MemberDefinition, total=False):
    """What of a member is to be something else, and whether it is asked at all."""

    enabled: bool


def check_reactor(strategy: str, config: Mapping[str, Any] | None, status: str) -> dict[str, Any]:
    """The config as it is stored.

    Raises
    ------
    FusionError
        There is no such strategy, option or status.
    """
    check_one_of("status", status, STATUSES)
    said = checked_config("the reactor's config", config)
    strategy_named(strategy).of(ReactorConfig.of(said).options)
    return said


def check_member(name: str, said: Mapping[str, Any]) -> None:
    """Refuse a member that makes no sense.

    Raises
    ------
    FusionError
        There is neither a model nor an endpoint, or a value does not fit.
    """
    model, endpoint, role = said["model"], said["endpoint"], said["role"]
    weight, priority = said["weight"], said["priority"]
    if model is None and endpoint is None:
        raise FusionError(f"the member {name!r} needs a model (name@version) or an endpoint (a name) that answers")
    if not (endpoint is None or (isinstance(endpoint, str) and endpoint.isprintable())):
        raise FusionError(f"the endpoint of {name!r} is a name of printable characters, not {endpoint!r:.80}")
    check_one_of("role", role, MEMBER_ROLES)
    if not _is(weight, Real) or not (math.isfinite(weight) and weight >= 0):
        raise FusionError(f"the weight of {name!r} is finite, and 0 or more, not {weight!r:.80}")
    if not _is(priority, Integral) or not 0 <= priority <= _MAX_PRIORITY:
        raise FusionError(f"the priority of {name!r} is 0 or more, and smaller goes first; not {priority!r:.80}")


def check_edge(source: str, target: str, kind: str) -> None:
    """Refuse an edge of no kind, or to where it comes from.

    Raises
    ------
    FusionError
        It is one.
    """
    check_one_of("kind", kind, get_args(Interaction))
    if source == target:
        raise FusionError(f"an edge leads from one member to another, not from {source!r} to itself")


def check_name(what: str, name: str) -> None:
    """Refuse what could not be a name.

    Raises
    ------
    FusionError
        It is one.
    """
    is_name = isinstance(name, str) and name.strip() and name.isprintable() and len(name) <= _MAX_NAME_LENGTH
    if not is_name:
        raise FusionError(f"the name of {what} is of 1 to {_MAX_NAME_LENGTH} printable characters, not {name!r:.80}")


def check_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that there is not.

    Raises
    ------
    FusionError
        It is one.
    """
    if value not in allowed:
        raise FusionError(f"no {what} is called {value!r:.80}; there are {', '.join(allowed)}")


def check_keys(what: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keys that there are not.

    Raises
    ------
    FusionError
        There are some.
    """
    allowed = tuple(known)
    if unknown := [key for key in keys if key not in allowed]:
        named = ", ".join(f"{key!r:.80}" for key in unknown)
        raise FusionError(f"{what} has no {named}; there are {', '.join(allowed)}")


def checked_config(what: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """A config as it comes back from the database.

    Raises
    ------
    FusionError
        It has something that JSON or PostgreSQL does not hold.
    """
    try:
        written = json.dumps({} if config is None else dict(config), allow_nan=False, ensure_ascii=False)
        written.encode()
    except (TypeError, ValueError) as error:
        raise FusionError(f"{what} is keys with values as JSON has them: {error}") from error
    if _NUL.search(written):
        raise FusionError(f"{what} has the character 0 in it, which PostgreSQL does not store")
    found: dict[str, Any] = json.loads(written)
    return found


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal as the database compares them: 1 is 1.0, and not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(each, other[key]) for key, each in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
