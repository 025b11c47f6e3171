"""Connections, transactions and the migration of schemas: the only place where an engine is made.

Database
    an engine, sessions and transactions on one database; `connect` makes it
embedded server
    PostgreSQL on this machine, started for us and shared by every process that uses the same home
transaction
    a whole unit of work, run again where the server says that this is safe
migration
    the way of a database from one revision of the schema to another, by one process at a time
rehearsal
    a migration done to a clone first, to see what it does
pooler
    PgBouncer in front of a server: sessions are shared, so nothing may depend on one
"""

from arc_halo.database.database import Database, connect
from arc_halo.database.transaction import run_transaction
from arc_halo.database.translate import driver_errors
from arc_halo.database.url import parse_url, printable

__all__ = ["Database", "connect", "driver_errors", "parse_url", "printable", "run_transaction"]
