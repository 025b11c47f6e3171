"""The command line, run in this process on a database of the test's own, or in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from arc_halo.cli import app
from tests.fixtures.models import bert, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL
    from typer.testing import Result

ENVIRONMENT = {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}


@dataclass(frozen=True)
class CommandLine:
    """Runs ``arc-halo --url <database> ...``."""

    url: str

    def run(self, *arguments: object, code: int = 0, answer: str | None = None) -> Result:
        words = ["--url", self.url, *map(str, arguments)]
        result = CliRunner().invoke(app, words, input=answer, env=ENVIRONMENT)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    def says(self, *arguments: object, answer: str | None = None) -> str:
        return self.run(*arguments, answer=answer).stdout

    def json(self, *arguments: object, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def error(self, *arguments: object, code: int = 1) -> str:
        """The one line of an error."""
        result = self.run(*arguments, code=code)
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        return lines[0]


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A process of its own."""
    inherited = {name: value for name, value in os.environ.items() if "DATABASE_URL" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", "arc_halo", *map(str, arguments)],
        env=inherited | ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def arc_halo(migrated_url: URL) -> CommandLine:
    return CommandLine(migrated_url.render_as_string(hide_password=False))


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    return write_folder(bert(), tmp_path / "bert")


@pytest.fixture
def stored(arc_halo: CommandLine, bert_folder: Path) -> CommandLine:
    """With a model ``m@1`` imported."""
    arc_halo.run("model", "import", bert_folder, "--name", "m")
    return arc_halo
