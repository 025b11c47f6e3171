"""As which user the embedded server runs, and the files and folders it must reach."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from arc_halo.errors import EmbeddedServerError

if TYPE_CHECKING:
    from pathlib import Path

SYSTEM_USER: Final = "arc_halo"  # PostgreSQL refuses to run as root, so root runs it as this user


class User(NamedTuple):
    """A user of the operating system, by number."""

    uid: int
    gid: int


def server_user(data: Path) -> User | None:
    """As whom the server runs when we are root: the data's owner, or a user without rights; else None, ourselves."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return User(data.stat().st_uid, data.stat().st_gid)
    import pwd  # noqa: PLC0415  not on Windows

    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
        with suppress(OSError):
            subprocess.run(command, check=False, capture_output=True)  # noqa: S603  the system's own, as root
        try:
            entry = pwd.getpwnam(SYSTEM_USER)  # made by us, or by another process meanwhile
        except KeyError:
            raise EmbeddedServerError(
                f"PostgreSQL does not run as root, and the user {SYSTEM_USER!r} it would run as cannot be made here; "
                "create that user, run as an ordinary one, or set ARC_HALO_DATABASE_URL"
            ) from None
    return User(entry.pw_uid, entry.pw_gid)


def peers(data: Path) -> list[str]:
    """The operating system's users that may connect; both always, so that neither shuts the other out."""
    import pwd  # noqa: PLC0415  not on Windows

    return ["root", pwd.getpwuid(data.stat().st_uid).pw_name]


def open_to_traversal(folder: Path) -> None:
    """Let the server's user pass through ``folder`` and its parents: passing, not listing, is all it needs."""
    for part in (folder, *folder.parents):
        mode = part.stat().st_mode
        if not mode & stat.S_IXOTH:
            part.chmod(mode | stat.S_IXOTH)


def open_programs(folder: Path) -> None:
    """Let the server's user run what is installed in ``folder``, which a strict umask has closed to others."""
    open_to_traversal(folder)
    if (folder / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    for part in (folder.parent, *folder.parent.rglob("*")):
        mode = part.stat().st_mode
        part.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents where they are missing.

    Raises
    ------
    EmbeddedServerError
        They cannot be made, or we may not write there.
    """
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made: {error.strerror}"
    if not problem and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        problem = "belongs to somebody else"
    if problem:
        raise EmbeddedServerError(
            f"the folder {folder} for the database {problem}; set ARC_HALO_HOME to one of your own"
        )


def make_private(folder: Path, owner: User | None) -> None:
    """A folder in a place everybody can write to; one that somebody else put there first is refused."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), owner.uid if owner else os.geteuid()}:
        raise EmbeddedServerError(
            f"{folder} belongs to somebody else; remove it, or set ARC_HALO_HOME to a shorter path"
        )
    folder.chmod(0o700)
    give(folder, owner)


def give(path: Path, owner: User | None) -> None:
    """Hand ``path`` to the user the server runs as, where that is not ourselves."""
    if owner is not None:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def replace_file(path: Path, text: str, owner: User | None) -> bool:
    """Replace a file of ours where it differs; whether it did."""
    if path.exists() and path.read_text() == text:
        return False
    building = path.with_name(path.name + ".new")
    # The folder is the server's user's, who could have planted a link there for root to write through: only a file
    # that this call makes is written, and no name is looked up again before it is whole.
    building.unlink(missing_ok=True)
    descriptor = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        if owner is not None:
            os.fchown(descriptor, owner.uid, owner.gid)
    building.replace(path)
    return True
