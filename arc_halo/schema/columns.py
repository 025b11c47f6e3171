"""Columns and constraints that recur in every domain."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Annotated

import uuid_utils.compat
from sqlalchemy import CheckConstraint, FetchedValue, ForeignKey, Integer, LargeBinary, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

uuid7 = uuid_utils.compat.uuid7
"""A version 7 UUID of the standard library's class, ordered by time (RFC 9562)."""

TENANT_ID = 0
"""The tenant of everybody who has not divided the database."""

Key = Annotated[uuid.UUID, mapped_column(primary_key=True, default=uuid7, server_default=text("arc_halo.uuid7()"))]
SmallInt = Annotated[int, mapped_column(SmallInteger)]
Int = Annotated[int, mapped_column(Integer)]
Digest = Annotated[bytes, mapped_column(LargeBinary)]
TenantId = Annotated[int, mapped_column(Integer, server_default=text("0"), default=TENANT_ID)]
Now = Annotated[dt.datetime, mapped_column(server_default=func.now())]


class Timestamped:
    """When a row was made and last changed, by the database's clock."""

    created_at: Mapped[Now] = mapped_column(sort_order=90)
    # The trigger update_updated_at_column() writes it; FetchedValue makes the ORM read it again after a flush.
    updated_at: Mapped[Now] = mapped_column(sort_order=91, server_onupdate=FetchedValue())


class Tenanted:
    """Belongs to a tenant; 0 where nobody divides the database."""

    tenant_id: Mapped[TenantId] = mapped_column(sort_order=89)


def reference(target: str, *, ondelete: str = "CASCADE") -> ForeignKey:
    """A foreign key to ``table.id`` of this schema, with what the database does when the target goes."""
    return ForeignKey(f"arc_halo.{target}.id", ondelete=ondelete)


def closed_set(column: str, *values: str) -> CheckConstraint:
    """Allow only these values in a text column, by a CHECK named after it."""
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


def digest_length(*columns: str) -> tuple[CheckConstraint, ...]:
    """Hold columns to the 32 bytes of a BLAKE3-256 digest; null passes."""
    return tuple(CheckConstraint(f"octet_length({column}) = 32", name=f"{column}_length") for column in columns)


def not_negative(*columns: str) -> tuple[CheckConstraint, ...]:
    """Refuse negative values; null passes."""
    return tuple(CheckConstraint(f"{column} >= 0", name=f"{column}_not_negative") for column in columns)
