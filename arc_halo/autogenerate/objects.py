"""What can be declared, and the SQL of what was."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from sqlalchemy import create_mock_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import MappedColumn

from arc_halo.autogenerate.schemas import declared_schemas
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sqlalchemy import Column, Constraint, FromClause, Index, MetaData, Table
    from sqlalchemy.schema import ExecutableDDLElement

Statements = tuple[str, ...]
Item = TypeVar("Item", bound="FromClause | Column[Any] | MappedColumn[Any] | Constraint | Index")

_INFO = "arc_halo.autogenerate.objects"
_FORMER = "arc_halo.autogenerate.renamed_from"
_REPLACEABLE = re.compile(
    r"\A((?:\s+|--[^\n]*\n|/\*.*?\*/)*)CREATE\s+(?=(?:FUNCTION|PROCEDURE|VIEW|TRIGGER)\b)", re.IGNORECASE | re.DOTALL
)
_CREATION = re.compile(r"\A(?:\s+|--[^\n]*\n|/\*.*?\*/)*CREATE\s", re.IGNORECASE | re.DOTALL)
_PRIVILEGES = re.compile(
    r"\A(?:\s+|--[^\n]*\n|/\*.*?\*/)*(?:GRANT|REVOKE|(ALTER\s+DEFAULT\s+PRIVILEGES))\b", re.IGNORECASE | re.DOTALL
)


class Key(NamedTuple):
    """Identity of an object or part; ``name`` is qualified, e.g. ``touch ON arc_halo.models``."""

    kind: str
    name: str


def declare(metadata: MetaData, *objects: str | Statements, renamed_from: str | None = None) -> None:
    """Declare objects by the SQL that creates them, in any order.

    Parameters
    ----------
    metadata
        Where the tables they belong to live; it must have a schema.
    objects
        One string, or one tuple of strings, per object: a function and its COMMENT are one tuple. Kind and name are
        not asked for: PostgreSQL knows them. GRANT, REVOKE and ALTER DEFAULT PRIVILEGES may be about several objects,
        and want ``manage_grants``.
    renamed_from
        The former name of the object, without schema and arguments: it is renamed where it stands under that name. Of a
        database that has the new name it means nothing.

    Raises
    ------
    ConfigurationError
        If there is a former name of several objects.

    Examples
    --------
    >>> from sqlalchemy import MetaData
    >>> metadata = MetaData(schema="app")
    >>> declare(metadata, "CREATE FUNCTION app.one() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1")
    """
    sources = [
        tuple(statement.strip().removesuffix(";") for statement in ((item,) if isinstance(item, str) else item))
        for item in objects
    ]
    metadata.info.setdefault(_INFO, []).extend(sources)
    if renamed_from is not None:
        if len(sources) != 1:
            raise ConfigurationError(f"{renamed_from!r} is the former name of one object: declare that one by itself.")
        metadata.info.setdefault(_FORMER, {})[sources[0]] = renamed_from


def renamed_from(item: Item, old: str) -> Item:
    """Declare the former name of a table, column, constraint, index or view: autogenerate renames what has it.

    Parameters
    ----------
    item
        A view is its table, ``CreateView(...).table``; its columns are that one's.
    old
        The former name as PostgreSQL has it, without schema and table. It means nothing any more once the new name
        stands, nor in a database that has neither.

    Returns
    -------
    Item
        The same.

    Raises
    ------
    ConfigurationError
        If it has another former name already.

    Examples
    --------
    >>> from sqlalchemy import Column, MetaData, Table, Text
    >>> metadata = MetaData(schema="app")
    >>> articles = Table("articles", metadata, renamed_from(Column("title", Text), "name"))
    >>> articles = renamed_from(articles, "items")
    """
    said = _info(item).setdefault(_FORMER, old)
    if said != old:
        raise ConfigurationError(f"{item} has the former names {said!r} and {old!r}: say the one that stands.")
    return item


def former_name(item: FromClause | Column[Any] | Constraint | Index) -> str | None:
    """What `renamed_from` was told of an item."""
    return cast("str | None", _info(item).get(_FORMER))


def former_names(metadata: MetaData) -> dict[Statements, str]:
    """Former names of views and of what is declared as SQL, by the statements that create it."""
    _, views = tables_and_views(metadata)
    of_views = {next(view_sources(view)): old for view in views if (old := former_name(view)) is not None}
    of_sql: dict[Statements, str] = metadata.info.get(_FORMER, {})
    return of_views | of_sql


def _info(item: object) -> dict[Any, Any]:
    holder = item.column if isinstance(item, MappedColumn) else item
    return cast("dict[Any, Any]", holder.info)  # type: ignore[attr-defined]


def declared(metadata: MetaData) -> list[Statements]:
    """Every object that was declared as SQL, in the order of declaration."""
    return [source for source in metadata.info.get(_INFO, ()) if not _PRIVILEGES.match(source[0])]


def declared_privileges(metadata: MetaData, *, default: bool) -> list[str]:
    """The declared GRANTs and REVOKEs, or the ALTER DEFAULT PRIVILEGES, in the order of declaration."""
    sources = [source for source in metadata.info.get(_INFO, ()) if _PRIVILEGES.match(source[0])]
    matches = [(statement, _PRIVILEGES.match(statement)) for source in sources for statement in source]
    return [statement for statement, match in matches if bool(match and match[1]) is default]


def tables_and_views(metadata: MetaData) -> tuple[list[Table], list[Table]]:
    """The tables of the metadata's schemas, and their views.

    Raises
    ------
    ConfigurationError
        If the metadata has no schema.
    """
    schemas = declared_schemas(metadata)
    ours = [table for table in metadata.tables.values() if table.schema in schemas]
    return [table for table in ours if not table.is_view], [table for table in ours if table.is_view]


def view_sources(view: Table) -> Iterator[Statements]:
    """The view with its comments, then each of its indexes: what SQLAlchemy would send, corrected.

    SQLAlchemy 2.1.9 sends COMMENT ON TABLE for a view's comment, which PostgreSQL refuses.
    """
    sent: list[str] = []
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # pyformat would double each %

    def collect(ddl: ExecutableDDLElement, *_: object, **__: object) -> None:
        sent.append(str(ddl.compile(dialect=dialect)).strip())

    view.create(create_mock_engine("postgresql+psycopg://", collect), checkfirst=False)
    kind = "MATERIALIZED VIEW" if sent[0].startswith("CREATE MATERIALIZED") else "VIEW"
    comments = [re.sub(r"\ACOMMENT ON TABLE", f"COMMENT ON {kind}", sql) for sql in sent if sql.startswith("COMMENT")]
    yield (sent[0], *comments)
    for sql in sorted(sql for sql in sent[1:] if not sql.startswith("COMMENT")):
        yield (sql,)


def or_replace(statements: Statements) -> Statements:
    """The same statements with CREATE OR REPLACE where PostgreSQL has it."""
    return tuple(_REPLACEABLE.sub(r"\1CREATE OR REPLACE ", statement) for statement in statements)


def is_creation(statements: Statements) -> bool:
    """Whether they make something, and do not only set something of a table."""
    return _CREATION.match(statements[0]) is not None
