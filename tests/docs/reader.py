"""A reader who does what a page says, from its first block to its last, in a folder with a model in it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from importlib.resources import files
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from arc_halo import Database, connect, import_model
from arc_halo.schema import Base
from tests.docs import programs
from tests.docs.pages import REPOSITORY, blocks
from tests.fixtures.hub import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

    from tests.docs.pages import Block
    from tests.fixtures.hub import Hub

RUN = ("arc-halo", "alembic")
# What takes minutes or changes the machine is run by .ci/run or by a test of its own; here it must only be known.
KNOWN = (
    re.compile(r"pip install -e \.( && arc-halo demo)?"),
    re.compile(r"pip install -e '\.\[(test|dev)\]'( && pytest)?"),
    re.compile(r"pip install arc-halo"),
    re.compile(r"python -m venv \.venv( && \. \.venv/bin/activate)?"),
    re.compile(r"pytest"),
)
# What needs an extra is run where that is installed, by a test of its own: tests/integrations/test_infer_generate.py.
ELSEWHERE = re.compile(r"arc-halo infer generate .+")
# Blocks that need torch are followed where that is installed: tests/integrations/test_inference_pages.py.
NEEDS_TORCH = re.compile(r"^from arc_halo\.integrations\.(?:torch|transformers)", re.MULTILINE)
QUOTED = re.compile(r"'[^']*'")
SCRIPT = re.compile(r"python ((?:benchmarks|docs|examples)/\w+\.py)( .*)?")


class Reader:
    """Runs the blocks of one page; Python blocks share their names."""

    def __init__(self, folder: Path, url: URL) -> None:
        self.folder = folder
        self.url = url
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed: dict[int, str] = {}
        self.environment: dict[str, str] = {}
        self.typed: set[str] = set()
        self.databases: list[Database] = []

    def read(self, page: Path) -> None:
        """Do what a page says."""
        for block in blocks(page):
            self.follow(block)

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        match block.language:
            case "python":
                if find_spec("torch") or not NEEDS_TORCH.search(block.text):
                    self._python(block)
            case "sh":
                self.printed[block.next_line] = "".join(self._shell(line, block.place) for line in block.lines)
            case "sql":
                rows = self._query(block.text)
                assert rows, f"{block.place}: finds nothing"
                self.printed[block.next_line] = "\n".join(" | ".join(map(str, row)) for row in rows)
            case "mermaid":
                self._see(block.text)
            case "yaml":
                # A comment in its first line says in which file the reader writes it down.
                name = re.fullmatch(r"# ([\w.-]+\.yml)", block.text.splitlines()[0])
                assert name is not None, f"{block.place}: says not in its first line which file it is"
                (self.folder / name[1]).write_text(block.text, encoding="utf-8")
            case "text":
                self._compare(block.lines, self.printed.get(block.line))
            case other:
                pytest.fail(f"{block.place}: nobody can read {other or 'a block without a language'}")

    def forget(self) -> None:
        """Begin anew, as in another process: names are gone, what is stored is not."""
        self.close()
        self.names, self.printed, self.databases = {"__name__": "__main__"}, {}, []
        self.environment = {}

    def close(self) -> None:
        """Close what the page left open; closing twice does nothing."""
        for database in self.databases:
            database.close()

    def _python(self, block: Block) -> None:
        with redirect_stdout(StringIO()) as printed, warnings.catch_warnings():
            if NEEDS_TORCH.search(block.text):
                warnings.simplefilter("ignore")  # what these libraries warn of is not ours
            # Blank lines before it make a traceback name the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), self.names)
        self.printed[block.next_line] = printed.getvalue()
        self.databases += [each for each in self.names.values() if isinstance(each, Database)]

    def _shell(self, line: str, place: str) -> str:
        if line.startswith("export "):
            name, value = line.removeprefix("export ").split("=", 1)
            self.environment[name] = value.strip('"').replace("$PWD", str(self.folder))
            return ""
        if ELSEWHERE.fullmatch(line):
            return ""
        if line.split(maxsplit=1)[0] not in RUN:
            script = SCRIPT.fullmatch(line)
            assert (REPOSITORY / script[1]).is_file() if script else any(each.fullmatch(line) for each in KNOWN), (
                f"{place}: {line!r} is not known here"
            )
            return ""
        folder = REPOSITORY if line.startswith("alembic") else self.folder
        done = self._run(line, folder)
        assert done.returncode == 0, f"{place}: {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _run(self, line: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """As typed into a shell, but for words to a program that was typed before: those without importing it again."""
        words = shlex.split(line)
        environment = os.environ | self.environment
        if words[0] in self.typed and not re.search(r'["$`&|;<>*?()\\#]', QUOTED.sub("", line)):
            return programs.run(words, folder, environment)
        self.typed.add(words[0])
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.run(
            line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    def _query(self, statement: str) -> list[Any]:
        """The rows a query finds where the model is; its import is taken back."""
        with connect(self.url) as database, database.session() as session:
            import_model(session, self.folder / "model", name="queried")
            cursor = session.connection().connection.cursor()
            cursor.execute(statement)
            return cursor.fetchall()

    def _see(self, diagram: str) -> None:
        """An ER diagram shows tables there are."""
        drawn = set(re.findall(r"^ {2}(\w+) (?:\{$|[|}])|-- ?[|o]?[|{] (\w+) :", diagram, re.MULTILINE))
        names = {name for pair in drawn for name in pair if name}
        assert names
        assert names <= {table.name for table in Base.metadata.tables.values()}

    def _compare(self, lines: list[str], printed: str | None) -> None:
        """A text block right below a block quotes what that prints, with ``...`` for what it leaves out."""
        if printed is not None:
            known = ["...", *(line.strip() for line in printed.splitlines())]
            assert [line for line in lines if line not in known] == []


@pytest.fixture
def reader(migrated_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Iterator[Reader]:
    """With a migrated database of its own in the environment, and a hub that has the model as ``lab/demo``, too."""
    for variable in ("DATABASE_URL", "ARC_HALO_TEST_DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", migrated_url.render_as_string(hide_password=False))
    monkeypatch.setenv("ARC_HALO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ARC_HALO_CACHE_FOLDER", str(tmp_path / "cache"))
    folder = tmp_path / "reading"
    shutil.copytree(Path(str(files("arc_halo"))) / "demo_model", folder / "model")
    hub.publish("lab/demo", folder / "model", "v1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(folder)
    with patch.dict(os.environ):  # a page may set variables, too
        reader = Reader(folder, migrated_url)
        yield reader
        reader.close()
