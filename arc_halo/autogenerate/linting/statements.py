"""The statements of revisions one by one, as Alembic's offline mode writes them."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from arc_halo.errors import SchemaNotAtHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext, MigrationStep

_BEGIN: Final = "BEGIN"
_COMMIT: Final = "COMMIT"


@dataclass(frozen=True, slots=True)
class Statement:
    """What is sent at once; ``revision`` is None for what the environment sends around revisions.

    ``is_transactional`` is false within an ``autocommit_block()``.
    """

    revision: str | None
    text: str
    is_transactional: bool = True


def offline_statements(config: Config, revision: str) -> list[Statement]:
    """All that ``alembic upgrade REVISION --sql`` writes, from an empty database on.

    Raises
    ------
    SchemaNotAtHead
        A revision cannot be written as SQL, since it asks the database something.
    """
    scripts = ScriptDirectory.from_config(config)
    recorder = _Recorder()

    def steps(heads: Any, _context: MigrationContext) -> Iterator[MigrationStep]:
        for step in scripts._upgrade_revs(revision, heads):  # noqa: SLF001  as alembic.command does
            recorder.listen_to(step)
            yield step

    with (
        _written_to(config, recorder),
        EnvironmentContext(config, scripts, fn=steps, as_sql=True, destination_rev=revision),
    ):
        try:
            scripts.run_env()
        except (AttributeError, TypeError) as error:  # of None, which is what a query gives offline
            where = f"revision {recorder.revision}" if recorder.revision else "the environment"
            raise SchemaNotAtHead(
                f"{where} asks the database something, so it cannot be written as SQL: {error}; "
                "have it look only when `context.is_offline_mode()` is false"
            ) from error
    return recorder.statements


def split(text: str, parses: Callable[[str], bool]) -> Iterator[str]:
    """The statements of a text.

    A semicolon may stand in a literal, a comment or the body of a function, so PostgreSQL is asked: the shortest piece
    that ``parses`` is a statement. What parses nowhere is given as it is, for PostgreSQL to say what is wrong with it.
    """
    text = text.strip().removesuffix(";")
    start = end = 0
    while text[start:].strip():
        rest = text[start:]
        if end == 0 and parses(rest):
            break
        end = text.find(";", max(start, end))
        if end < 0:
            break
        piece = text[start:end]
        if parses(piece) and not _ends_in_comment(piece, parses):
            if piece.strip():
                yield piece.strip()
            start = end + 1
        end += 1
    if rest := text[start:].strip():
        yield rest


def _ends_in_comment(piece: str, parses: Callable[[str], bool]) -> bool:
    """Whether what comes next on its last line would be no SQL."""
    return "--" in piece.rpartition("\n")[2] and parses(f"{piece} )")


class _Recorder(io.StringIO):
    """The output of offline mode: each write is a statement, or several in a text of the revision's own."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[Statement] = []
        self.revision: str | None = None
        self.is_transactional = True

    def listen_to(self, step: MigrationStep) -> None:
        """Let the statements that come while the step runs be its revision's."""
        script = getattr(step, "revision", None)
        if script is None:
            return  # a stamp
        migrate = step.migration_fn

        def recorded(**arguments: Any) -> None:
            self.revision = script.revision
            migrate(**arguments)
            self.revision, self.is_transactional = None, True

        step.migration_fn = recorded

    def write(self, text: str) -> int:
        statement = text.strip().removesuffix(";").strip()
        if self.revision is not None and statement in {_BEGIN, _COMMIT}:
            self.is_transactional = statement == _BEGIN
        elif statement not in {_BEGIN, _COMMIT, ""} and not statement.startswith("-- Running "):
            self.statements.append(Statement(self.revision, statement, self.is_transactional))
        return len(text)


@contextmanager
def _written_to(config: Config, output: io.StringIO) -> Iterator[None]:
    before, config.output_buffer = config.output_buffer, output
    try:
        yield
    finally:
        config.output_buffer = before
