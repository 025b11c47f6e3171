"""Pages are up to date, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.docs.pages import INTEGRATIONS, PAGES, REPOSITORY, prose

LINKED = (*PAGES, *INTEGRATIONS, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md")


def test_the_data_model_is_what_the_declarations_say():
    spec = importlib.util.spec_from_file_location("make_data_model", REPOSITORY / "docs" / "make_data_model.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.PAGE.read_text(encoding="utf-8") == maker.page(), "run `python docs/make_data_model.py`"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    targets = re.findall(r"\[[^\]]*\]\(([^)#]+)[^)]*\)", prose(page))
    assert [each for each in targets if "://" not in each and not (page.parent / each).exists()] == []


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.stem)
def test_links_into_pages_lead_to_headings(page):
    targets = re.findall(r"\[[^\]]*\]\(([^)#:]*)#([^)]+)\)", prose(page))
    headings = {path: _anchors(page.parent / path if path else page) for path, _ in targets}
    assert [f"{path}#{anchor}" for path, anchor in targets if anchor not in headings[path]] == []


def _anchors(page):
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *INTEGRATIONS], ids=lambda page: page.stem)
def test_paths_in_text_are_files(page):
    paths = re.findall(r"`((?:arc_halo|alembic|benchmarks|docs|examples|tests|\.github)/[\w./-]+)`", prose(page))
    assert [each for each in paths if not (REPOSITORY / each).exists()] == []


def test_every_page_is_linked_from_the_readme():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    pages = [page.relative_to(REPOSITORY).as_posix() for page in (*PAGES[1:], *INTEGRATIONS)]
    assert [page for page in pages if f"({page})" not in readme] == []
