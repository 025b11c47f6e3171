"""Upkeep: what the database remembers of work on itself: uploads under way, units that were committed, checks."""

# ruff: noqa: TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from arc_halo.schema.base import Base
from arc_halo.schema.columns import Digest, Key, Now, TenantId, digest_length, not_negative

EMPTY_ARRAY = text("'[]'::jsonb")


class UploadLease(Base):
    """A big upload under way: what it relies on was touched after it began, and prune leaves that alone."""

    __tablename__ = "upload_leases"
    __table_args__ = (*not_negative("nbytes"), Index("ix_upload_leases_expires_at", "expires_at"))

    id: Mapped[Key]
    tenant_id: Mapped[TenantId]
    description: Mapped[str] = mapped_column(comment="who uploads: host and process")
    nbytes: Mapped[int] = mapped_column(comment="raw bytes of the tensors that are to be stored")
    started_at: Mapped[Now]
    lock_key: Mapped[int | None] = mapped_column(
        comment="advisory lock that its process holds as long as it lives; null behind a transaction pooler"
    )
    expires_at: Mapped[dt.datetime] = mapped_column(comment="renewed while it runs")


class Operation(Base):
    """A unit of work that was committed: the row is the answer when that of COMMIT was lost."""

    __tablename__ = "operations"
    __table_args__ = (Index("ix_operations_committed_at", "committed_at"),)

    id: Mapped[Key] = mapped_column(comment="made by the client before the unit began")
    committed_at: Mapped[Now]


class BlobDeletion(Base):
    """An object that no row needs any more: deleted by the sweeper, after the transaction that let go of it."""

    __tablename__ = "blob_deletions"
    __table_args__ = (Index("ix_blob_deletions_requested_at", "requested_at"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    blob_location: Mapped[str] = mapped_column(comment="key below the URL of the blob store")
    requested_at: Mapped[Now]


class Verification(Base):
    """A check of all stored bytes: how far it came, so that it goes on where it was interrupted."""

    __tablename__ = "verifications"
    __table_args__ = (
        CheckConstraint("percent > 0 AND percent <= 100", name="percent_range"),
        *digest_length("last_digest"),
        *not_negative("checked_count", "checked_nbytes"),
    )

    id: Mapped[Key]
    tenant_id: Mapped[TenantId]
    percent: Mapped[float] = mapped_column(comment="share of the chunks that is read, chosen by their digests")
    last_digest: Mapped[Digest | None] = mapped_column(comment="chunks are read in this order; null before the first")
    checked_count: Mapped[int] = mapped_column(server_default=text("0"), default=0)
    checked_nbytes: Mapped[int] = mapped_column(server_default=text("0"), default=0)
    faults: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list, server_default=EMPTY_ARRAY)
    started_at: Mapped[Now]
    finished_at: Mapped[dt.datetime | None]
