"""What a revision would do to a database that is in use: locks, rewrites and scans of tables of their present size.

Statement    what a revision sends, as offline mode writes it.
Scratch      an empty database that is dropped afterwards: revisions are run there, never on the database they are for.
Snapshot     relations, columns and constraints of the scratch between two statements.
Observation  a statement that was run on the scratch: the locks it held, what changed, what PostgreSQL said it read.
Effect       what a statement does to one table that was there before its revision.
Size         rows and bytes of a table of the database that the revisions are for.
Finding      an effect that somebody would notice: a danger where the table is large, else a note.

PostgreSQL is the only judge of SQL here, too: the locks are those of ``pg_locks`` on a server of this version, not of
a table of rules. Any project whose ``env.py`` has an offline mode can be linted.
"""

from __future__ import annotations

from arc_halo.autogenerate.linting.judging import Effect, Finding, Judgement, Limits
from arc_halo.autogenerate.linting.linter import Report, RevisionReport, lint
from arc_halo.autogenerate.linting.scratch import temporary_database
from arc_halo.autogenerate.linting.sizes import Size

__all__ = [
    "Effect",
    "Finding",
    "Judgement",
    "Limits",
    "Report",
    "RevisionReport",
    "Size",
    "lint",
    "temporary_database",
]
