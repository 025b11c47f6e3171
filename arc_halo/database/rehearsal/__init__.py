"""Rehearsals: what an upgrade would do to a database, done to a clone of it.

Clone
    a copy of a database that is dropped when the rehearsal is over: made by PostgreSQL from the database as a template,
    out of a dump, or as a branch at Neon
source
    the database that is cloned; it is only read
step
    one revision, up or down, and what was seen of it: time, locks, write-ahead log, growth, tables written anew
leftover
    the clone of a rehearsal that was killed, or one that was to be kept
"""
