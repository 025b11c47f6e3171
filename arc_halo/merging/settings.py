"""Values of parameters as recipes say them: numbers, gradients over layers, filters by tensor name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from arc_halo.errors import MergeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from arc_halo.merging.abc import Method, Parameter, Value
    from arc_halo.merging.document import Entry

    Settings: TypeAlias = Mapping[str, "Setting"]


@dataclass(frozen=True, slots=True)
class Clause:
    """Values for tensors whose names contain ``filter``, or for all; several are a gradient."""

    filter: str | None
    values: Sequence[Value]

    def matches(self, tensor: str) -> bool:
        """Whether it is said of that tensor."""
        return self.filter is None or self.filter in tensor

    def at(self, place: float) -> Value:
        """The value at a place between 0, the first layer, and 1, the last."""
        scaled = place * (len(self.values) - 1)
        before = int(scaled)
        if isinstance(self.values[0], bool):
            return self.values[before]  # nothing lies between true and false
        after = min(len(self.values) - 1, before + 1)
        return (1 - (scaled - before)) * self.values[before] + (scaled - before) * self.values[after]


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter's clauses, of which the first that matches counts."""

    clauses: Sequence[Clause]

    def of(self, tensor: str, place: float) -> Value | None:
        """The value for a tensor; None where no clause matches."""
        return next((each.at(place) for each in self.clauses if each.matches(tensor)), None)


def read_settings(entry: Entry | None, method: Method, *, of_a_model: bool) -> dict[str, Setting]:
    """The ``parameters`` of a recipe, a slice or a model.

    Raises
    ------
    RecipeError
        The method has no such parameter, it is not one of a model, or has no such values.
    """
    if entry is None or entry.is_null:
        return {}
    found = {}
    for name, each in entry.mapping().items():
        try:
            parameter = method.parameter(name)
        except MergeError as error:
            each.refuse(str(error))
        if of_a_model and parameter.scope == "shared":
            each.refuse("is one for all models; write it under parameters of the slice or of the whole recipe")
        found[name] = Setting(tuple(_clauses(each, parameter)))
    return found


def _clauses(entry: Entry, parameter: Parameter) -> Iterable[Clause]:
    items = entry.items() if entry.is_list else [entry]
    if not any(each.is_mapping for each in items):
        yield Clause(None, tuple(_value(each, parameter) for each in items))
        return
    for each in items:
        if not each.is_mapping:
            each.refuse("must be a filter and a value, as its neighbours are; or a number, as its neighbours are")
        fields = each.mapping(("filter", "value"))
        if "value" not in fields:
            each.refuse("has no value")
        value = fields["value"]
        chosen = fields.get("filter")
        pattern = None if chosen is None or chosen.is_null else chosen.text("a filter")
        values = value.items() if value.is_list else [value]
        yield Clause(None if pattern == "*" else pattern, tuple(_value(one, parameter) for one in values))


def _value(entry: Entry, parameter: Parameter) -> Value:
    if parameter.is_flag:
        return entry.flag()
    number = entry.number()
    if parameter.least is not None and number < parameter.least:
        entry.refuse(f"{parameter.name} must be at least {parameter.least:g}, not {number:g}")
    if parameter.most is not None and number > parameter.most:
        entry.refuse(f"{parameter.name} must be at most {parameter.most:g}, not {number:g}")
    return number


def resolve(parameter: Parameter, tensor: str, place: float, settings: Iterable[Settings], who: str) -> Value:
    """The value of a parameter for a tensor, from the nearest settings that have one.

    Raises
    ------
    MergeError
        Nobody says it, and it has no default.
    """
    for each in settings:
        if parameter.name in each and (value := each[parameter.name].of(tensor, place)) is not None:
            return value
    if parameter.default is None:
        raise MergeError(f"the recipe has no {parameter.name} for tensor {tensor!r}{who}; add one without a filter")
    return parameter.default
