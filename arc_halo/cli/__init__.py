"""The command line: one file per noun.

Command
    A verb under its noun: ``arc-halo model import``. It owns its transaction and commits.
Invocation
    What was said before the noun: which database, and whether tracebacks are wanted.
Finding
    One thing `db doctor` looked at: what is there, and what to do if it is wrong.

Exit codes: 0, 1 for an error (one line on stderr), 2 for a wrong command line, 130 when interrupted. Answers go to
stdout; errors, questions and progress to stderr. What is heavy to import is imported by the command that needs it.
"""

from arc_halo.cli.application import app, main

__all__ = ["app", "main"]
