"""``pg_dump | pg_restore``: a database read beside its clients, and written into an empty one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import text

from arc_halo.database.migrate import migration_engine
from arc_halo.database.url import libpq_string, printable
from arc_halo.database.wheel import major, programs_folder
from arc_halo.errors import ConfigurationError, DatabaseError, EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

_CHUNK_NBYTES: Final = 1 << 18
_SAID: Final = 500  # of what a program printed, the end
# pg_restore sends it to every server, and those before 17 do not know it.
_UNKNOWN_SETTING: Final = "transaction_timeout"
_KNOWS_SETTING: Final = 17


def restore(
    source: URL,
    target: URL,
    *,
    schema_only: bool = False,
    is_elsewhere: bool = False,
    report: Callable[[int], None] | None = None,
) -> None:
    """Copy what ``source`` holds into the empty database ``target``, by a pipe: nothing is left on the disk.

    Parameters
    ----------
    schema_only
        Leave the rows behind.
    is_elsewhere
        Another server, whose roles are others: owners and privileges are left behind, too.
    report
        Told how many bytes came so far.

    Raises
    ------
    ConfigurationError
        There is no ``pg_dump`` as new as the server.
    DatabaseError
        One of the two programs failed; the message ends with what it said.
    """
    folder = _tools(source, _server_major(source))
    dumping = [
        "--format=custom",
        "--compress=0",
        "--lock-wait-timeout=60s",
        *(["--schema-only"] if schema_only else []),
    ]
    restoring = ["--no-owner", "--no-privileges"] if is_elsewhere else []
    is_strict = _server_major(target) >= _KNOWS_SETTING
    restoring += ["--exit-on-error"] if is_strict else []
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
        dump = _start(stack, folder / "pg_dump", dumping, source, said[0], stdout=subprocess.PIPE)
        fill = _start(stack, folder / "pg_restore", restoring, target, said[1], stdin=subprocess.PIPE)
        assert dump.stdout is not None
        assert fill.stdin is not None
        done = 0
        with suppress(BrokenPipeError):  # pg_restore has given up, and says why
            while chunk := dump.stdout.read1(_CHUNK_NBYTES):  # type: ignore[attr-defined]  # a buffered reader
                fill.stdin.write(chunk)
                done += len(chunk)
                if report is not None:
                    report(done)
        with suppress(BrokenPipeError):
            fill.stdin.close()
        restored = fill.wait()
        dump.stdout.close()
        if restored and not (not is_strict and _is_harmless(_text(said[1]))):
            raise DatabaseError(f"pg_restore into a clone of {printable(source)} failed: {_text(said[1])[-_SAID:]}")
        if dump.wait():
            raise DatabaseError(f"pg_dump of {printable(source)} failed: {_text(said[0])[-_SAID:]}")


def _start(
    stack: ExitStack, program: Path, arguments: list[str], url: URL, said: IO[str], **pipes: Any
) -> subprocess.Popen[bytes]:
    """Start a client program; the password goes by the environment, which only its own user can read."""
    parts = conninfo_to_dict(libpq_string(url))
    password = parts.pop("password", None)
    address = make_conninfo("", **{name: value for name, value in parts.items() if value is not None})
    environment = os.environ | {"LC_ALL": "C"} | ({} if password is None else {"PGPASSWORD": str(password)})
    process = subprocess.Popen(  # noqa: S603  PostgreSQL's own
        [program, *arguments, f"--dbname={address}"], env=environment, stderr=said, **pipes
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing running, whatever happened to the other one."""
    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def _is_harmless(said: str) -> bool:
    """Whether the one error of a restore was a setting that the server is too old for."""
    return "errors ignored on restore: 1" in said and f'parameter "{_UNKNOWN_SETTING}"' in said


def _tools(source: URL, server: int) -> Path:
    """The folder of a ``pg_dump`` that may read this server: the wheel's, else the one on the path."""
    found: dict[str, int] = {}
    with suppress(EmbeddedServerError):
        found[str(programs_folder())] = int(major())
    if on_path := shutil.which("pg_dump"):
        found[str(Path(on_path).parent)] = _program_major(on_path)
    for folder, version in found.items():
        if version >= server:
            return Path(folder)
    newest = max(found.values(), default=None)
    state = "there is no pg_dump here" if newest is None else f"pg_dump is of PostgreSQL {newest}"
    raise ConfigurationError(
        f"{printable(source)} is on PostgreSQL {server}, and {state}: it does not read newer servers; put the client "
        f"programs of PostgreSQL {server} on the path, or clone by template"
    )


def _program_major(program: str) -> int:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603  PostgreSQL's own
    digits = done.stdout.rpartition(") ")[2].partition(".")[0].strip()
    return int(digits) if digits.isdecimal() else 0


def _server_major(url: URL) -> int:
    with migration_engine(url).connect() as connection:
        return int(connection.scalar(text("SHOW server_version_num")) or 0) // 10_000


def _text(file: IO[str]) -> str:
    file.seek(0)
    return " ".join(file.read().split())
