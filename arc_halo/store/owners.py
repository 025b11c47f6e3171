"""Which database an object of a blob store is of: several may share a store, and each deletes only its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Of the server, not of the rows: a dump that is restored, a copy by TEMPLATE and a Neon branch are other databases than
# the one they came from, and their rows name objects that it still needs.
OWNER: Final = """
substr(encode(sha256(convert_to(concat_ws('/', (SELECT c.system_identifier FROM pg_control_system() AS c),
                                          (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()),
                                          current_setting('neon.timeline_id', true)), 'UTF8')), 'hex'), 1, 16)
"""
"""SQL for the identity of the database, 16 hexadecimal digits: a part of the keys of its objects."""


def owner_of(connection: Connection) -> str:
    """The identity of the database of a connection."""
    return str(connection.scalar(text(f"SELECT {OWNER}")))
