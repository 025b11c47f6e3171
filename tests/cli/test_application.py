"""Global options, exit codes, and errors as one line."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from arc_halo import __version__
from arc_halo.cli import app
from arc_halo.cli.application import RootGroup
from arc_halo.errors import ModelNotFound
from tests.cli.command_line import ENVIRONMENT, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import URL

    from tests.cli.command_line import CommandLine

HEAVY = {"alembic", "blosc2", "numpy", "psycopg", "pydantic", "sqlalchemy"}
SHOW_MODULES = """
import sys
from arc_halo.cli import main
try:
    main()
finally:
    print(*sys.modules)
"""


def commands(group: Any, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *words, name)


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_explains_itself_with_an_example(words):
    result = CliRunner().invoke(app, [*words, "--help"], env=ENVIRONMENT)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    if len(words) > 1 or words in {("prune",), ("demo",)}:
        assert "Example: " in result.stdout


def test_help_shows_brackets():
    said = " ".join(CliRunner().invoke(app, ["model", "import", "--help"], env=ENVIRONMENT).stdout.split())
    assert "hf://ORG/NAME[@REVISION] of the hub" in said
    for words in commands(typer.main.get_command(app)):
        found = typer.main.get_command(app)
        for word in words:
            found = found.commands[word]
        helps = [found.help, *(getattr(each, "help", None) for each in found.params)]
        assert [each for each in helps if each and re.search(r"(?<!\\)\[", each)] == []


def test_help_begins_with_what_one_does_first():
    root = typer.main.get_command(app)
    assert next(iter(root.commands)) == "demo"
    assert list(root.commands["model"].commands)[:3] == ["import", "export", "push"]


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout == f"arc-halo {__version__}\n"


@pytest.mark.parametrize("words", [["nonsense"], ["model", "nonsense"], ["model", "show"], ["model", "show", "a", "b"]])
def test_a_wrong_command_line_exits_with_2(words):
    result = CliRunner().invoke(app, words, env=ENVIRONMENT)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_wrong_choice_is_told_without_the_librarys_words():
    result = CliRunner().invoke(app, ["model", "quantize", "m", "--scheme", "int4"], env=ENVIRONMENT)
    assert result.exit_code == 2
    assert "Invalid value for '--scheme': 'int4' is not one of 'int8', 'fp8', 'nf4'." in result.stderr


def test_with_json_an_error_is_one_line_on_stderr_and_no_answer(arc_halo: CommandLine):
    result = arc_halo.run("model", "show", "nobody", "--json", code=1)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_an_error_is_one_line(arc_halo: CommandLine):
    assert "no model 'nobody'" in arc_halo.error("model", "show", "nobody")


def test_debug_shows_where(arc_halo: CommandLine):
    result = CliRunner().invoke(app, ["--debug", "--url", arc_halo.url, "model", "show", "nobody"])
    assert isinstance(result.exception, ModelNotFound)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("x"), "error: KeyError: 'x'; `arc-halo --debug ...` shows where\n"),
        (PermissionError(13, "Permission denied", "/out"), "error: /out: Permission denied\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (ModelNotFound("two\nlines"), "error: two lines\n"),
        (ModelNotFound("\x1b[2J"), "error: \\x1b[2J\n"),
    ],
)
def test_what_is_raised_becomes_one_line(raised, said):
    failing = typer.Typer(cls=RootGroup)

    @failing.callback()
    def root(*, debug: bool = False) -> None:
        del debug

    @failing.command()
    def fail() -> None:
        raise raised

    result = CliRunner().invoke(failing, ["fail"], env=ENVIRONMENT)
    assert (result.exit_code, result.stderr) == (1, said)


def test_an_interrupt_exits_with_130(monkeypatch):
    monkeypatch.setattr("arc_halo.cli.invocation.Invocation.target", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    result = CliRunner().invoke(app, ["db", "current"], env=ENVIRONMENT)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_an_interrupted_import_says_that_nothing_was_stored(arc_halo: CommandLine, bert_folder: Path, monkeypatch):
    words = ("model", "import", bert_folder, "--name", "m")
    with monkeypatch.context() as patch:
        patch.setattr("arc_halo.registry.importing.publish_model", interrupt)
        assert arc_halo.run(*words, code=130).stderr == "interrupted; nothing was stored\n"
    assert arc_halo.json("model", "list") == []
    with monkeypatch.context() as patch:
        patch.setattr("arc_halo.cli.model.moving.describe", interrupt)
        assert arc_halo.run(*words, code=130).stderr == "interrupted\n"
    assert [each["version"] for each in arc_halo.json("model", "list")] == ["1"]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_unusable_url_shows_no_password():
    result = CliRunner().invoke(app, ["--url", "mysql://me:secret@host/db", "db", "current"], env=ENVIRONMENT)
    assert result.exit_code == 1
    assert "only PostgreSQL" in result.stderr
    assert "secret" not in result.output


def test_help_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", SHOW_MODULES, "--help"], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_a_terminal_that_knows_few_letters(stored: CommandLine):
    process = start("model", "show", "m", ARC_HALO_DATABASE_URL=stored.url, PYTHONIOENCODING="ascii")
    said, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert "embeddings" in said


def test_a_closed_pipe_is_quiet(migrated_url: URL):
    process = start("db", "current", ARC_HALO_DATABASE_URL=migrated_url.render_as_string(hide_password=False))
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
