"""YAML as it is written: values that know their line, and errors that say it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import yaml

from arc_halo.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_MAX_NBYTES: Final = 1 << 20
_MAX_ENTRIES: Final = 100_000
# YAML 1.1 takes 1e-3 for a text; mergekit reads it as the number that was meant, and so does everybody who writes it.
_NUMBER: Final = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Kind:
    """What documents are read, and what is raised for those that are none.

    Attributes
    ----------
    name
        In a sentence, such as ``recipe``.
    keys
        What to write into an empty one.
    """

    name: str
    keys: str
    error: Callable[[str], Exception]


RECIPE: Final = Kind("recipe", "merge_method, models", RecipeError)


def compose(text: str, where: str, kind: Kind = RECIPE) -> Entry:
    """The root of a document.

    Nothing is built from it but texts, numbers, lists and mappings.

    Raises
    ------
    RecipeError
        It is no YAML, not one document, or too large. Of another kind the error is that kind's, here and below.
    """
    if len(text) > _MAX_NBYTES:
        raise kind.error(f"{where} has more than {_MAX_NBYTES:,} characters: that is no {kind.name}")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise kind.error(f"{where}, {line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise kind.error(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise kind.error(f"{where} is nested too deeply: that is no {kind.name}") from None
    if node is None:
        raise kind.error(f"{where} is empty; write {kind.keys} and what else there is to say")
    return Entry(node, "", _Place(where, kind))


@dataclass(slots=True)
class _Place:
    """Where a document is, and how much of it was looked at: an alias is looked at as often as it is written."""

    where: str
    kind: Kind
    seen: int = 0


class Entry:
    """A value in a document, with its path: ``models[1].parameters.weight``."""

    def __init__(self, node: yaml.Node, path: str, place: _Place) -> None:
        self._node = node
        self._place = place
        self.path = path
        place.seen += 1
        if place.seen > _MAX_ENTRIES:
            raise place.kind.error(f"{place.where} has more than {_MAX_ENTRIES:,} values: that is no {place.kind.name}")

    def refuse(self, why: str) -> NoReturn:
        """Raise `RecipeError`, or the error of another kind, with line and path."""
        at = f", {self.path}" if self.path else ""
        raise self._place.kind.error(f"{self._place.where}, line {self._node.start_mark.line + 1}{at}: {why}")

    @property
    def is_list(self) -> bool:
        """Whether it has items."""
        return isinstance(self._node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self._node, yaml.MappingNode)

    @property
    def is_null(self) -> bool:
        """Whether nothing is written there."""
        return self._node.tag == "tag:yaml.org,2002:null"

    def mapping(self, known: Collection[str] | None = None) -> dict[str, Entry]:
        """Its values by their keys.

        Parameters
        ----------
        known
            What keys there may be; None for any.
        """
        if not isinstance(self._node, yaml.MappingNode):
            self.refuse("must be keys with values")
        found: dict[str, Entry] = {}
        for key_node, value_node in self._node.value:
            key = Entry(key_node, self.path, self._place).text("a key")
            value = Entry(value_node, f"{self.path}.{key}" if self.path else key, self._place)
            if key in found:
                value.refuse("stands there twice")
            if known is not None and key not in known:
                value.refuse(f"unknown key; there are {', '.join(known)}")
            found[key] = value
        return found

    def items(self, least: int = 1) -> list[Entry]:
        """What a list holds, at least one unless none will do."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.refuse("must be a list")
        if len(self._node.value) < least:
            self.refuse("must not be empty")
        return [Entry(each, f"{self.path}[{index}]", self._place) for index, each in enumerate(self._node.value)]

    def text(self, what: str = "it") -> str:
        """A text, also one that looks like a number."""
        if not isinstance(self._node, yaml.ScalarNode) or self.is_null or not self._node.value.strip():
            self.refuse(f"{what} must be a text")
        return str(self._node.value)

    def flag(self) -> bool:
        """True or false."""
        value = self._scalar()
        if not isinstance(value, bool):
            self.refuse(f"must be true or false, not {self._shown()}")
        return value

    def number(self) -> float:
        """A finite number."""
        value = self._scalar()
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _INFINITY:
            self.refuse(f"must be a number, not {self._shown()}")
        return float(value)

    def whole(self) -> int:
        """A whole number that is not negative."""
        value = self._scalar()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGE:
            self.refuse(f"must be a whole number from 0 on, not {self._shown()}")
        return value

    def plain(self) -> Any:
        """All of it, as JSON holds it."""
        if isinstance(self._node, yaml.MappingNode):
            return {key: each.plain() for key, each in self.mapping().items()}
        if isinstance(self._node, yaml.SequenceNode):
            return [each.plain() for each in self._children()]
        value = self._scalar()
        return value if value is None or isinstance(value, bool | int | float) else self._node.value

    def _children(self) -> Iterator[Entry]:
        for index, each in enumerate(self._node.value):
            yield Entry(each, f"{self.path}[{index}]", self._place)

    def _scalar(self) -> Any:
        if not isinstance(self._node, yaml.ScalarNode):
            self.refuse("must be a single value")
        try:
            return _BUILDER.construct_object(self._node)
        except (yaml.YAMLError, ValueError, OverflowError):  # a tag or a date that is none
            self.refuse(f"{self._shown()} cannot be read")

    def _shown(self) -> str:
        return f"{self._node.value!r:.40}" if isinstance(self._node, yaml.ScalarNode) else "a list or keys"


_BUILDER: Final = yaml.constructor.SafeConstructor()
_INFINITY: Final = float("inf")
_LARGE: Final = 1 << 31
