"""Roles of a test's own: they belong to the whole server, and go with the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.testing.migrations import Project


class Roles(NamedTuple):
    """Names as SQL has them; that of the writer needs quotes."""

    reader: str
    writer: str
    owner: str
    other: str

    @staticmethod
    def plain(quoted: str) -> str:
        """The name itself."""
        return quoted.strip('"')


@pytest.fixture
def roles(project: Project) -> Iterator[Roles]:
    """Four roles that may nothing so far."""
    tag = uuid4().hex[:12]
    made = Roles(f"reader_{tag}", f'"Wri ter-{tag}"', f"owner_{tag}", f"other_{tag}")
    project.execute(*(f"CREATE ROLE {role}" for role in made))
    yield made
    project.execute(*(f"DROP OWNED BY {role} CASCADE" for role in made), *(f"DROP ROLE {role}" for role in made))
