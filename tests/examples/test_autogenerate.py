"""The project in examples/autogenerate: created, changed and taken back by `alembic` itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from arc_halo.autogenerate import fingerprint

PROJECT = Path(__file__).parents[2] / "examples" / "autogenerate"


class Shop:
    """A copy of the project, and a database for it."""

    def __init__(self, folder, url):
        self.folder = shutil.copytree(PROJECT, folder)
        self.engine = create_engine(url)
        self.environment = os.environ | {"DATABASE_URL": url.render_as_string(hide_password=False)}

    def alembic(self, *arguments):
        done = self.run(*arguments)
        return done.stdout + done.stderr

    def alembic_output(self, *arguments):
        return self.run(*arguments).stdout

    def run(self, *arguments):
        command = [sys.executable, "-m", "alembic", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def revise(self):
        """Write a revision; return its upgrade without the breaks in long literals."""
        self.alembic("revision", "--autogenerate", "-m", "change", "--rev-id", f"{len(self.revisions()) + 1:04}")
        text = self.revisions()[-1].read_text(encoding="utf-8")
        return re.sub(r"'\n\s+'", "", text.partition("def upgrade")[2].partition("def downgrade")[0])

    def revisions(self):
        return sorted((self.folder / "migrations" / "versions").glob("*.py"))

    def edit(self, old, new):
        models = self.folder / "models.py"
        text = models.read_text(encoding="utf-8")
        assert text.count(old) == 1
        models.write_text(text.replace(old, new), encoding="utf-8")

    def fingerprint(self):
        with self.engine.connect() as connection:
            return fingerprint(connection, "shop")


@pytest.fixture
def shop(tmp_path, database_url):
    shop = Shop(tmp_path / "shop", database_url)
    yield shop
    shop.engine.dispose()


def test_it_goes_up_and_down(shop):
    first = shop.revise()
    for made in ("create_table('items'", "FUNCTION shop.gross", "VIEW shop.offers", "TRIGGER count_change"):
        assert made in first
    shop.alembic("upgrade", "head")
    assert "No new upgrade operations detected" in shop.alembic("check")
    created = shop.fingerprint()

    shop.edit("price * 119 / 100", "price * 120 / 100")
    shop.edit("Item.price)), ", "Item.price)).where(Item.price > 0), ")
    change = shop.revise()
    assert "CREATE OR REPLACE FUNCTION shop.gross" in change
    assert "CREATE OR REPLACE VIEW shop.offers" in change
    assert change.count(" op.execute(\n") == 2

    shop.alembic("upgrade", "head")
    assert "No new upgrade operations detected" in shop.alembic("check")
    assert shop.fingerprint() != created
    shop.alembic("downgrade", "-1")
    assert shop.fingerprint() == created
    shop.alembic("downgrade", "base")
    assert shop.fingerprint() == []


def test_what_loses_rows_wants_to_be_told_so(shop):
    shop.revise()
    shop.alembic("upgrade", "head")
    shop.edit('    changes: Mapped[int] = mapped_column(server_default="0")\n', "")
    shop.edit("NEW.changes := OLD.changes + 1;", "NEW.price := NEW.price;")
    assert "# DATA LOSS: column shop.items.changes" in shop.revise()
    with pytest.raises(AssertionError, match="-x allow_data_loss=1"):
        shop.alembic("upgrade", "head")
    shop.alembic("-x", "allow_data_loss=1", "upgrade", "head")
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO shop.items (name, price) VALUES ('one', 1)")
    with pytest.raises(AssertionError, match="-x allow_data_loss=1"):
        shop.alembic("downgrade", "base")
    shop.alembic("-x", "allow_data_loss=1", "downgrade", "base")
    assert shop.fingerprint() == []


def test_offline_it_does_the_same(shop):
    shop.edit("RETURN price * 119 / 100", "RETURN price * 119 / 100 + length('100% safe, %s')")
    shop.revise()
    sql = shop.alembic_output("upgrade", "head", "--sql")
    shop.alembic("upgrade", "head")
    online = shop.fingerprint()
    shop.alembic("downgrade", "base")
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA shop CASCADE")
        connection.exec_driver_sql(
            sql.replace("BEGIN;", "").replace("COMMIT;", ""), execution_options={"no_parameters": True}
        )
    assert shop.fingerprint() == online


def test_its_revisions_run_without_the_plugin(shop):
    shop.revise()
    assert "arc_halo" not in shop.revisions()[0].read_text(encoding="utf-8")


def test_it_has_nothing_of_ours_but_the_plugin():
    code = [path.read_text(encoding="utf-8") for path in PROJECT.rglob("*.py")]
    imported = re.findall(r"^.*\barc_halo\b.*$", "\n".join(code), re.MULTILINE)
    assert sorted(imported) == [
        "from arc_halo.autogenerate import declare",
        "from arc_halo.autogenerate.environment import run_migrations",
    ]
    assert sum(text.count("\n") for text in code) <= 60
