"""What the linter squawk says about the same SQL, where it is installed: ``pip install squawk-cli``."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from arc_halo.autogenerate.linting.judging import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from arc_halo.autogenerate.linting.statements import Statement

_SECONDS: Final = 60.0
# What is observed here is better known: which tables are new, how large the others are, what is read or written anew.
_OBSERVED: Final = (
    "adding-field-with-default",
    "adding-foreign-key-constraint",
    "adding-not-nullable-field",
    "ban-concurrent-index-creation-in-transaction",
    "ban-drop-column",
    "ban-drop-table",
    "changing-column-type",
    "constraint-missing-not-valid",
    "disallowed-unique-constraint",
    "renaming-column",
    "renaming-table",
    "require-concurrent-index-creation",
    "require-concurrent-index-deletion",
    "require-lock-timeout",
)


def squawk_findings(statements: Sequence[Statement]) -> list[list[Finding]]:
    """Notes by statement; none where squawk is not installed, fails, or knows nothing else."""
    found: list[list[Finding]] = [[] for _ in statements]
    program = shutil.which("squawk")
    if program is None or not statements:
        return found
    lines: list[int] = []  # the number of the statement by the number of the line
    for number, statement in enumerate(statements):
        lines += [number] * (statement.text.count("\n") + 1)
    sql = "".join(f"{statement.text};\n" for statement in statements)
    for said in _ask(program, sql):
        with suppress(KeyError, TypeError, IndexError):
            rule = f"squawk:{said['rule_name']}"
            finding = Finding("note", rule, None, str(said["message"]), str(said.get("help") or ""))
            found[lines[int(said["line"])]].append(finding)
    return found


def _ask(program: str, sql: str) -> list[dict[str, Any]]:
    command = [program, "--reporter", "json", "--assume-in-transaction", "--exclude", ",".join(_OBSERVED)]
    try:
        done = subprocess.run(  # noqa: S603  the installed program
            command, input=sql, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        said = json.loads(done.stdout or "[]")
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    return said if isinstance(said, list) else []
