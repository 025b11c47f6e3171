"""The declarative base: one schema, one naming convention, comments taken from docstrings."""

from __future__ import annotations

import datetime as dt
import inspect
import uuid
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Double, LargeBinary, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase

SCHEMA = "arc_halo"


class Base(DeclarativeBase):
    """Base of all mapped classes; the first line of a class's docstring is its table's COMMENT."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        },
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        bytes: LargeBinary,
        dict[str, Any]: JSONB(none_as_null=True),
        dt.datetime: TIMESTAMP(timezone=True),
        float: Double,
        int: BigInteger,
        str: Text,
        uuid.UUID: Uuid,
    }

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        table = cls.__dict__.get("__table__")
        if isinstance(table, Table) and table.comment is None:
            table.comment = first_line(cls)

    def __repr__(self) -> str:
        shown = [name for name in ("name", "version", "status", "id") if name in self.__mapper__.column_attrs]
        state = self.__dict__  # never loads: a repr must not send a query
        return f"{type(self).__name__}({', '.join(f'{name}={state[name]!s}' for name in shown if name in state)})"


def first_line(declaration: object) -> str | None:
    """The first line of a docstring."""
    documented = inspect.getdoc(declaration)
    return documented.splitlines()[0] if documented else None
