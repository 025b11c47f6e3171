from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import arc_halo
from arc_halo.database import connect
from arc_halo.database.migrate import script_folder

ROOT = Path(arc_halo.__file__).parent.parent
UPGRADE = """
import sys
import arc_halo
from arc_halo.database.migrate import script_folder, upgrade
print(arc_halo.__file__, script_folder(), sep="\\n")
upgrade(sys.argv[1])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    return built


def run_from(folder, *arguments):
    """Run Python where the unpacked wheel comes before every other installation."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_repository_migrates_from_its_own_folder():
    assert script_folder() == ROOT / "alembic"


def test_the_wheel_migrates_an_empty_database_from_its_copy(wheel, tmp_path, database_url):
    unpacked = tmp_path / "site-packages"
    zipfile.ZipFile(wheel).extractall(unpacked)
    output = run_from(unpacked, "-c", UPGRADE, database_url.render_as_string(hide_password=False))
    assert output.splitlines() == [
        str(unpacked / "arc_halo" / "__init__.py"), str(unpacked / "arc_halo" / "_alembic")
    ]  # fmt: skip
    connect(database_url).close()


def test_the_wheel_carries_what_the_code_reads(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    read = {path for path in (ROOT / "arc_halo").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed >= {path.relative_to(ROOT).as_posix() for path in read}
    assert packed >= {
        f"arc_halo/_alembic/{path.relative_to(ROOT / 'alembic').as_posix()}"
        for path in (ROOT / "alembic").rglob("*.py")
    }
    assert {name.split("/")[0].partition("-")[0] for name in packed} == {"arc_halo"}


def test_the_wheel_runs_the_command_line(wheel, tmp_path):
    unpacked = tmp_path / "site-packages"
    zipfile.ZipFile(wheel).extractall(unpacked)
    assert "model" in run_from(unpacked, "-m", "arc_halo", "--help")
