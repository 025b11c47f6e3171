"""What Alembic reflects, under the names that it will have: it then compares a renamed table instead of dropping it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arc_halo.autogenerate.renames import PARTS
from arc_halo.autogenerate.schemas import Relation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy import Inspector

    from arc_halo.autogenerate.renames import Rename

_COLUMN_LISTS = ("constrained_columns", "column_names", "expressions", "include_columns")


class RenamedInspector:
    """An `Inspector` that says new names and is asked by them; all else is the inspector's."""

    def __init__(self, inspector: Inspector, renames: Sequence[Rename]) -> None:
        self.renames = renames
        self._inspector = inspector
        tables = [(each.relation, each.old) for each in renames if each.kind == "table" and each.relation is not None]
        self._new_tables = {Relation(table.schema, old): table.name for table, old in tables}
        self._old_tables = dict(tables)
        self._columns = {(each.relation, each.old): each.new for each in renames if each.kind == "column"}
        self._parts = {(each.relation, each.old): each.new for each in renames if each.kind in PARTS}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inspector, name)
        if name.startswith("get_multi_"):
            return self._multi(found)
        if name.startswith("get_") and hasattr(self._inspector, many := f"get_multi_{name.removeprefix('get_')}"):
            return self._single(self._multi(getattr(self._inspector, many)))
        return found

    def get_table_names(self, schema: str | None = None, **options: Any) -> list[str]:
        """By their new names."""
        return [self._new(schema, name) for name in self._inspector.get_table_names(schema=schema, **options)]

    def _new(self, schema: str | None, table: str) -> str:
        return self._new_tables.get(Relation(str(schema), table), table)

    def _multi(self, method: Callable[..., Mapping[Any, Any]]) -> Callable[..., Mapping[Any, Any]]:
        """The method of many tables."""

        def renamed(
            schema: str | None = None, filter_names: Collection[str] | None = None, **options: Any
        ) -> Mapping[Any, Any]:
            asked = None
            if filter_names is not None:
                asked = [self._old_tables.get(Relation(str(schema), name), name) for name in filter_names]
            found = method(schema=schema, filter_names=asked, **options)
            return {
                (schema, new := self._new(schema, table)): self._said(Relation(str(schema), new), said)
                for (_, table), said in found.items()
            }

        renamed.__name__ = method.__name__  # Alembic looks the name up in the dialect
        return renamed

    def _single(self, multi: Callable[..., Mapping[Any, Any]]) -> Callable[..., Any]:
        """The method of one table."""

        def renamed(table_name: str, schema: str | None = None, **options: Any) -> Any:
            return multi(schema=schema, filter_names=[table_name], **options)[schema, table_name]

        return renamed

    def _said(self, table: Relation, said: Any) -> Any:
        """What is said of a table: a list of dictionaries, or one."""
        if isinstance(said, list):
            return [self._said(table, each) for each in said]
        renamed = dict(said)
        name = said.get("name")
        is_column = "type" in said
        if name is not None:
            renamed["name"] = (self._columns if is_column else self._parts).get((table, name), name)
        for key in _COLUMN_LISTS:
            if key in said:
                renamed[key] = [self._columns.get((table, column), column) for column in said[key]]
        if "column_sorting" in said:
            sorting = said["column_sorting"].items()
            renamed["column_sorting"] = {self._columns.get((table, column), column): how for column, how in sorting}
        if "duplicates_constraint" in said:
            constraint = said["duplicates_constraint"]
            renamed["duplicates_constraint"] = self._parts.get((table, constraint), constraint)
        if "referred_table" in said:
            target = Relation(str(said["referred_schema"]), self._new(said["referred_schema"], said["referred_table"]))
            columns = [self._columns.get((target, column), column) for column in said["referred_columns"]]
            renamed |= {"referred_table": target.name, "referred_columns": columns}
        return renamed
