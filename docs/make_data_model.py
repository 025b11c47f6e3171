"""Write docs/data-model.md from the declarations: ``python docs/make_data_model.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.dialects import postgresql

from arc_halo import schema
from arc_halo.schema import Base

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Column, Table

PAGE = Path(__file__).with_name("data-model.md")
BODIES = Path(schema.__file__).parent / "sql"
DOMAINS = (
    "core",
    "tensors",
    "training",
    "checkpoints",
    "inference",
    "caches",
    "fusion",
    "upkeep",
    "views",
    "metric_views",
    "weight_views",
    "usage_views",
)
INTRODUCTION = """\
# Data model

Everything lies in the PostgreSQL schema `arc_halo`. Keys of entities are UUIDv7 made by the client; rows of which there
are many have natural composite keys. Times are `timestamptz`, by the database's clock. Closed sets are text with a
named CHECK. This page is made from the declarations by `docs/make_data_model.py`; a test holds the two together.

Parameters are counted as the elements of tensors as they are stored: `parameter_count` in Python, in SQL and in
`v_model_architecture` alike. Codes of nf4 lie two in a byte, of type `U8`, so a version in nf4 counts half as many
parameters for its codes as it had numbers, rounded up in each row; `arc-halo model show` says how many they stand for.
Of int8 and fp8 there is a code for each number, and blocks of ggml's types count the numbers that they hold.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(_section(domain) for domain in DOMAINS), _functions()])


def _section(domain: str) -> str:
    tables = list(_tables(domain))
    parts = [f"## {domain}\n", (sys.modules[f"arc_halo.schema.{domain}"].__doc__ or "").strip() + "\n"]
    if not domain.endswith("views"):
        parts.append(_diagram(tables))
    parts += [_description(table) for table in tables]
    return "\n".join(parts)


def _functions() -> str:
    """Every function with its COMMENT, the first line of its file."""
    lines = ["## functions\n", "| function | meaning |", "|---|---|"]
    for file in sorted(BODIES.glob("*.sql")):
        comment, definition = file.read_text(encoding="utf-8").split("\n", 1)
        if definition.lstrip().startswith("CREATE FUNCTION"):
            lines.append(f"| `{file.stem}` | {comment.removeprefix('-- ')} |")
    return "\n".join([*lines, ""])


def _tables(domain: str) -> Iterator[Table]:
    """Tables in the order in which they are declared."""
    modules = {mapper.local_table: mapper.class_.__module__ for mapper in Base.registry.mappers}
    return (table for table in Base.metadata.tables.values() if modules.get(table) == f"arc_halo.schema.{domain}")


def _diagram(tables: Iterable[Table]) -> str:
    lines = ["```mermaid", "erDiagram"]
    for table in tables:
        lines.append(f"  {table.name} {{")
        lines += [f"    {_word(column)} {column.name}{_marks(column)}" for column in table.columns if _shown(column)]
        lines.append("  }")
    for table in tables:
        for target, optional in _targets(table):
            lines.append(f'  {target} {"|o" if optional else "||"}--o{{ {table.name} : ""')
    return "\n".join([*lines, "```", ""])


def _shown(column: Column[object]) -> bool:
    return column.primary_key or bool(column.foreign_keys)


def _targets(table: Table) -> list[tuple[str, bool]]:
    """Tables that foreign keys lead to, and whether they may be null."""
    return sorted(
        {
            (key.referred_table.name, any(column.nullable for column in key.columns))
            for key in table.foreign_key_constraints
        }
    )


def _description(table: Table) -> str:
    lines = [f"### {table.name}\n", f"{table.comment or ''}\n", "| column | type | | meaning |", "|---|---|---|---|"]
    for column in table.columns:
        null = "" if column.nullable or table.is_view else "not null"
        lines.append(f"| `{column.name}` | {_type(column)} | {null}{_marks(column)} | {column.comment or ''} |")
    return "\n".join([*lines, ""])


def _marks(column: Column[object]) -> str:
    marks = [mark for mark, is_so in (("PK", column.primary_key), ("FK", bool(column.foreign_keys))) if is_so]
    return f" {','.join(marks)}" if marks else ""


def _type(column: Column[object]) -> str:
    return str(column.type.compile(dialect=postgresql.dialect())).lower()


def _word(column: Column[object]) -> str:
    """A type as mermaid takes it: one word."""
    name = _type(column).split("(", maxsplit=1)[0].replace(" with time zone", "tz")
    return name.replace(" ", "_").replace("[]", "_array")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
