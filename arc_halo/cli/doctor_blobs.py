"""What `arc-halo db doctor` looks at in the blob store."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.cli.output import count, size
from arc_halo.codecs.digest import chunk_digest
from arc_halo.errors import ArcHaloError
from arc_halo.store.blobs import open_store
from arc_halo.store.owners import owner_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

_PROBE: Final = b"arc-halo db doctor"
_ROWS: Final = text("""
SELECT (SELECT count(*) FROM arc_halo.tensor_data WHERE blob_location IS NOT NULL),
       (SELECT coalesce(sum(stored_nbytes), 0)::bigint FROM arc_halo.tensor_data WHERE blob_location IS NOT NULL),
       (SELECT count(*) FROM arc_halo.blob_deletions),
       (SELECT min(started_at) FROM arc_halo.upload_leases)
""")


@dataclass(frozen=True, slots=True)
class BlobStoreState:
    """The store that is configured, by its URL without secrets, and what rows say of it.

    ``identity`` is what the keys of this database's objects have in them. ``error`` says what the store could not do.
    """

    url: str | None
    identity: str
    is_there: bool
    is_reachable: bool
    is_writable: bool
    payload_count: int
    payload_nbytes: int
    waiting_count: int
    oldest_lease_at: dt.datetime | None
    error: str | None = None

    @property
    def is_to_come(self) -> bool:
        """A folder that is not there, and that no row says should be."""
        return self.url is not None and not self.is_there and self.error is None

    @property
    def described(self) -> str:
        """In one line."""
        place = self.url or "none is configured"
        parts = [
            f"{place}, which the first payload makes" if self.is_to_come else place,
            f"{count(self.payload_count, 'payload')} in objects ({size(self.payload_nbytes)})",
            f"{count(self.waiting_count, 'object')} waiting for the sweeper",
        ]
        if self.oldest_lease_at is not None:
            parts.append(f"oldest upload under way since {self.oldest_lease_at.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC")
        return ", ".join(parts)

    @property
    def advice(self) -> str | None:
        """What to put right."""
        if self.error is not None:
            return f"{self.error}: payloads in objects cannot be {'written' if self.is_reachable else 'read'}"
        if self.url is None and self.payload_count:
            return "set ARC_HALO_BLOB_URL to the store that holds them"
        return None


def examine_blobs(connection: Connection, url: str | None) -> BlobStoreState:
    """Count what rows say, then put a small object, read it and delete it again; a folder is not made for that."""
    identity = owner_of(connection)
    payload_count, payload_nbytes, waiting_count, oldest = connection.execute(_ROWS).one()
    name, is_there, is_reachable, is_writable, error = _probe(url, identity, is_empty=not payload_count)
    counted = (payload_count, payload_nbytes, waiting_count, oldest)
    return BlobStoreState(name, identity, is_there, is_reachable, is_writable, *counted, error)


def _probe(url: str | None, identity: str, *, is_empty: bool) -> tuple[str | None, bool, bool, bool, str | None]:
    if url is None:
        return None, False, False, False, None
    try:
        blobs = open_store(url)
    except ArcHaloError as error:
        return "a store that cannot be used", False, False, False, str(error)
    if is_empty and not blobs.is_there:
        return blobs.name, False, False, False, None
    is_reachable = False
    try:
        next(blobs.blobs(chunk_digest(_PROBE)), None)
        is_reachable = True
        location = blobs.put(chunk_digest(_PROBE), _PROBE, identity)
        blobs.get(location, len(_PROBE))
        blobs.delete([location])
    except ArcHaloError as error:
        return blobs.name, blobs.is_there, is_reachable, False, str(error)
    return blobs.name, True, True, True, None
