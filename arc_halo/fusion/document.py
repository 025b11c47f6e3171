"""A reactor's definition as a file, in YAML or JSON: read with the line of what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from arc_halo.errors import FusionError
from arc_halo.fusion.checks import (
    MemberDefinition,
    check_edge,
    check_member,
    check_name,
    check_one_of,
    check_reactor,
    checked_config,
)
from arc_halo.merging.document import Kind, compose
from arc_halo.schema.fusion import MEMBER_ROLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from arc_halo.fusion.defining import EdgeDefinition
    from arc_halo.merging.document import Entry

Checked = TypeVar("Checked")
_KIND: Final = Kind("definition", "name, strategy, members", FusionError)
_KEYS: Final = ("name", "strategy", "members", "edges", "config", "status")
_MEMBER_KEYS: Final = ("model", "endpoint", "role", "weight", "priority", "config")
# JSON writes a character beyond the first 65,536 as two; YAML would take them for two characters that there are not.
_PAIR: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True)
class Definition:
    """What `define_reactor` is told: its arguments by their names."""

    name: str
    strategy: str
    members: dict[str, MemberDefinition]
    edges: list[EdgeDefinition] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "active"


def read_definition(path: Path) -> Definition:
    """Read a definition from a file.

    Raises
    ------
    FusionError
        It cannot be read, or makes no sense; the message has the line, and the path to what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FusionError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FusionError(f"{path.name} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse_definition(text, path.name)


def parse_definition(text: str, where: str) -> Definition:
    """Read a definition from a text.

    Parameters
    ----------
    where
        What errors call it.

    Raises
    ------
    FusionError
        It makes no sense; the message has the line, and the path to what is wrong.
    """
    if text.lstrip().startswith("{"):  # JSON: its texts have no tabs, and YAML takes none between them
        text = _PAIR.sub(_one_character, text.replace("\t", " "))
    root = compose(text, where, _KIND)
    keys = root.mapping(_KEYS)
    for each in ("name", "strategy", "members"):
        if each not in keys:
            root.refuse(f"{each} is missing; a definition has name, strategy and members")
    name, strategy = keys["name"].text(), keys["strategy"].text()
    status = keys["status"].text() if "status" in keys else "active"
    _within(keys["name"], check_name, "a reactor", name)
    _within(keys["strategy"], check_reactor, strategy, {}, "active")
    _within(keys.get("status", root), check_reactor, strategy, {}, status)
    config = _config(keys.get("config"))
    _within(keys.get("config", root), check_reactor, strategy, config, status)
    members = {each: _member(each, entry) for each, entry in keys["members"].mapping().items()}
    edges = [_edge(each, members) for each in _listed(keys.get("edges"))]
    return Definition(name, strategy, members, edges, config, status)


def _member(name: str, entry: Entry) -> MemberDefinition:
    keys = entry.mapping(_MEMBER_KEYS)
    said: dict[str, Any] = {each: keys[each].text() for each in ("model", "endpoint", "role") if _is_said(keys, each)}
    if "weight" in keys:
        said["weight"] = keys["weight"].number()
    if "priority" in keys:
        said["priority"] = keys["priority"].whole()
    if "config" in keys:
        said["config"] = _config(keys["config"])
    _within(entry, check_name, "a member", name)
    defaults = {"model": None, "endpoint": None, "role": "primary", "weight": 1.0, "priority": 0}
    if "role" in said:
        _within(keys["role"], check_one_of, "role", said["role"], MEMBER_ROLES)
    _within(entry, check_member, name, defaults | said)
    made: MemberDefinition = said  # type: ignore[assignment]  # keys of it alone were asked for
    return made


def _is_said(keys: dict[str, Entry], name: str) -> bool:
    return name in keys and not keys[name].is_null


def _edge(entry: Entry, members: dict[str, MemberDefinition]) -> EdgeDefinition:
    """Of ``[source, kind, target]``, read as a sentence, and perhaps a label or all of a config."""
    parts = entry.items()
    if len(parts) not in (3, 4):
        entry.refuse("must be [source, kind, target], or with a label or config after them")
    source, kind, target = (each.text() for each in parts[:3])
    _within(parts[1], check_edge, source, target, kind)
    for part, end in ((parts[0], source), (parts[2], target)):
        if end not in members:
            part.refuse(f"no member {end!r:.80} is defined")
    if len(parts) == 3:  # noqa: PLR2004
        return source, target, kind
    config = _config(parts[3]) if parts[3].is_mapping else {"label": parts[3].text()}
    return source, target, kind, config


def _listed(entry: Entry | None) -> list[Entry]:
    return [] if entry is None or entry.is_null else entry.items(least=0)


def _config(entry: Entry | None) -> dict[str, Any]:
    if entry is None or entry.is_null:
        return {}
    entry.mapping()
    return _within(entry, checked_config, "it", entry.plain())


def _within(entry: Entry, check: Callable[..., Checked], *arguments: Any) -> Checked:
    """What a check gives; what it refuses is told with the line."""
    try:
        return check(*arguments)
    except FusionError as error:
        entry.refuse(str(error))


def _one_character(match: re.Match[str]) -> str:
    high, low = int(match[2], 16), int(match[3], 16)
    return match[1] + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
