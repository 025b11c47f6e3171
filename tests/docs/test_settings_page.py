from __future__ import annotations

import re
from pathlib import Path

from arc_halo.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_has_every_setting_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) - {"DATABASE_URL"} == {f"ARC_HALO_{name.upper()}" for name in Settings.model_fields}


def test_the_page_has_the_defaults():
    text = PAGE.read_text(encoding="utf-8")
    numbers = {name: field.default for name, field in Settings.model_fields.items() if isinstance(field.default, int)}
    for name, default in numbers.items():
        assert f"| `ARC_HALO_{name.upper()}` | {default} |" in text
