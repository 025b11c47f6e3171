"""Expansions as they are declared, and the SQL of their sync triggers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from arc_halo.autogenerate.objects import declare
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Column, FromClause, MetaData

    from arc_halo.autogenerate.objects import Statements

MARK: Final = "expand"
"""The first argument of every sync trigger: by it they are found in a database."""

_INFO: Final = "arc_halo.autogenerate.expanding"
_LONGEST_NAME: Final = 63
_quoted: Final = postgresql.dialect(paramstyle="named").identifier_preparer.quote  # type: ignore[no-untyped-call]
# *<> compares the bytes of records: every type has it, and it sees what equality of the type may not, such as case.
_FUNCTION: Final = """\
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $expand$
#variable_conflict use_column
DECLARE
    filled {target}.{new}%TYPE;
BEGIN
    IF ROW(NEW.{new})::record OPERATOR(pg_catalog.*<>) ROW(OLD.{new})::record THEN
        filled := (SELECT {forward} FROM (SELECT NEW.*) AS {table});
        IF ROW(NEW.{new})::record OPERATOR(pg_catalog.*<>) ROW(filled)::record THEN
            NEW.{old} := (SELECT {backward} FROM (SELECT NEW.*) AS {table});
        END IF;
    ELSIF NEW.{new} IS NULL OR ROW(NEW.{old})::record OPERATOR(pg_catalog.*<>) ROW(OLD.{old})::record THEN
        NEW.{new} := (SELECT {forward} FROM (SELECT NEW.*) AS {table});
    END IF;
    RETURN NEW;
END
$expand$"""


@dataclass(frozen=True, slots=True)
class Expansion:
    """A column that is to take the place of another; names are bare, as they are without quotes.

    ``forward`` and ``backward`` are expressions over a row of the table, which make the new value and the old one.
    """

    schema: str
    table: str
    old: str
    new: str
    forward: str
    backward: str

    @property
    def name(self) -> str:
        """The name of trigger and function: triggers fire by name, and this one is to see what others changed."""
        return f"zz_expand_{self.table}_{self.new}"

    @property
    def target(self) -> str:
        """The table as SQL names it."""
        return f"{_quoted(self.schema)}.{_quoted(self.table)}"

    @property
    def unfilled(self) -> str:
        """The condition for a row whose new column still wants its value."""
        return f"{_quoted(self.new)} IS NULL AND ({self.forward}) IS NOT NULL"

    @property
    def column(self) -> str:
        """The new column as messages name it."""
        return f"{self.schema}.{self.table}.{self.new}"

    @property
    def sources(self) -> tuple[Statements, Statements]:
        """What creates function and trigger."""
        function = f"{_quoted(self.schema)}.{_quoted(self.name)}"
        body = _FUNCTION.format(
            function=function,
            target=self.target,
            table=_quoted(self.table),
            old=_quoted(self.old),
            new=_quoted(self.new),
            forward=self.forward,
            backward=self.backward,
        )
        arguments = ", ".join(map(literal, (MARK, self.old, self.new, self.forward, self.backward)))
        trigger = (
            f"CREATE TRIGGER {_quoted(self.name)} BEFORE INSERT OR UPDATE ON {self.target}"
            f" FOR EACH ROW EXECUTE FUNCTION {function}({arguments})"
        )
        return (body,), (trigger,)


def declare_expansion(table: FromClause, old: str, new: str, *, forward: str, backward: str) -> Expansion:
    """Declare that one column of a table is to take the place of another, and keep both in step until then.

    A writer of one column fills the other, whichever version of the application it is of. Who writes both is taken at
    their word where they agree; where they do not, the new column wins, since a default or an unchanged attribute may
    stand in the old one.

    Parameters
    ----------
    table
        The table, with both columns. The new one has no default, and may be null until it is filled.
    old, new
        Their names.
    forward, backward
        SQL for the new value and for the old one, of the row's columns; every other name with its schema.

    Raises
    ------
    ConfigurationError
        The table has no such columns, or they cannot be kept in step.

    Examples
    --------
    >>> from sqlalchemy import BigInteger, Column, MetaData, Numeric, Table
    >>> items = Table(
    ...     "items",
    ...     MetaData(schema="app"),
    ...     Column("id", BigInteger, primary_key=True),
    ...     Column("price", Numeric, nullable=False),
    ...     Column("price_cents", BigInteger),
    ... )
    >>> expansion = declare_expansion(
    ...     items, "price", "price_cents", forward="(price * 100)::bigint", backward="price_cents / 100.0"
    ... )
    """
    if not isinstance(table, Table) or table.schema is None or table.schema != table.metadata.schema:
        raise ConfigurationError(f"{table} is no table of a metadata with a schema: MetaData(schema=...).")
    expansion = Expansion(table.schema, str(table.name), old, new, forward.strip(), backward.strip())
    _refuse(table, expansion)
    table.metadata.info.setdefault(_INFO, []).append(expansion)
    declare(table.metadata, *expansion.sources)
    return expansion


def declared_expansions(metadata: MetaData) -> list[Expansion]:
    """What was declared of a metadata."""
    return list(metadata.info.get(_INFO, ()))


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return str(_quoted(name))


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def _refuse(table: Table, expansion: Expansion) -> None:
    columns: dict[str, Column[object]] = {each.name: each for each in table.columns}
    missing = [name for name in (expansion.old, expansion.new) if name not in columns]
    if missing or expansion.old == expansion.new:
        raise ConfigurationError(f"{table} needs two columns, {expansion.old!r} and {expansion.new!r}, side by side.")
    if columns[expansion.old].computed is not None or columns[expansion.old].identity is not None:
        raise ConfigurationError(f"{table}.{expansion.old} is generated: nobody can write it, so nothing keeps it.")
    if columns[expansion.new].server_default is not None:
        raise ConfigurationError(
            f"{table}.{expansion.new} has a default, which would be taken for what somebody wrote: give it with the"
            " contract; until then the default of the old column does for both."
        )
    if len(expansion.name.encode()) > _LONGEST_NAME:
        raise ConfigurationError(f"{expansion.name!r} is too long for a trigger: choose a shorter name of the column.")
