"""docs/command-line.md has a section for each command, with options there are and an example that was run."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import COMMAND_LINE, INTEGRATIONS, PAGES, blocks, commands, prose

COMMANDS = commands()
SECTIONS = dict(re.findall(r"^### (arc-halo .+?)\n(.*?)(?=^##|\Z)", prose(COMMAND_LINE), re.MULTILINE | re.DOTALL))


def test_each_command_has_a_section():
    assert sorted(SECTIONS) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example(name):
    examples = [line for block in blocks(COMMAND_LINE) if block.language == "sh" for line in block.lines]
    assert any(f"{line} ".startswith(f"{name} ") for line in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_names_options_there_are(name):
    known = {
        spelling for parameter in COMMANDS[name].params for spelling in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(re.findall(r"`(--?[a-z][a-z-]*)", SECTIONS[name])) <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(name):
    assert f"Example: {name}" in COMMANDS[name].help or f'"$({name}' in COMMANDS[name].help


@pytest.mark.parametrize("page", [*PAGES, *INTEGRATIONS], ids=lambda page: page.stem)
def test_pages_name_commands_there_are(page):
    nouns = {name.split()[1] for name in COMMANDS} | {"--url", "--blob-url", "--debug", "--install-completion"}
    named = re.findall(
        r"arc-halo ((?:blobs|cache|db|infer|model|train) [a-z-]+|[a-z-]+)", page.read_text(encoding="utf-8")
    )
    assert [each for each in named if f"arc-halo {each}" not in COMMANDS and each not in nouns] == []
