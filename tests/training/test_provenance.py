"""What a run is made of: found in real repositories, and never told wrongly where it could not be found."""

import argparse
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import ConfigurationError
from arc_halo.training import provenance
from arc_halo.training.provenance import MAX_DIFF_NBYTES, capture_provenance, plain


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("print(1)\n")
    (folder / "weights.bin").write_bytes(bytes(1000))
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return folder


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


def code(folder):
    found = capture_provenance(folder=folder)
    return found.details["code"], found.code_digest


def test_a_clean_repository_is_its_commit(repository):
    details, digest = code(repository)
    head = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert details["commit"] == head.stdout.strip()
    assert (details["is_clean"], details["diff"], details["diff_nbytes"], details["untracked"]) == (True, "", 0, [])
    assert code(repository / ".") == (details, digest)


def test_what_is_not_committed_is_kept_and_changes_the_digest(repository):
    digests = [code(repository)[1]]
    (repository / "train.py").write_text("print(2)\n")
    details, digest = code(repository)
    digests.append(digest)
    assert not details["is_clean"]
    assert "-print(1)\n+print(2)" in details["diff"]
    for content in (b"new", b"now"):
        (repository / "new file.py").write_bytes(content)
        details, digest = code(repository)
        digests.append(digest)
        assert details["untracked"] == ["new file.py"]
    (repository / "weights.bin").write_bytes(bytes(999) + b"\1")
    digests.append(code(repository)[1])
    assert len(set(digests)) == len(digests)


def test_of_large_changes_the_beginning_is_kept_and_all_count(repository):
    digests = []
    for last in "ab":
        (repository / "train.py").write_text("x" * 2 * MAX_DIFF_NBYTES + last)
        details, digest = code(repository)
        digests.append(digest)
        assert len(details["diff"]) == MAX_DIFF_NBYTES
        assert details["diff_nbytes"] > 2 * MAX_DIFF_NBYTES
    assert digests[0] != digests[1]


def test_a_link_counts_by_where_it_leads(repository, tmp_path):
    big = tmp_path / "big"
    digests = []
    for content in (b"", b"other"):
        big.write_bytes(content)
        (repository / "link").unlink(missing_ok=True)
        (repository / "link").symlink_to(big)
        digests.append(code(repository)[1])
    (repository / "link").unlink()
    (repository / "link").symlink_to(tmp_path)
    assert digests[0] == digests[1] != code(repository)[1]


def test_a_folder_of_a_repository_is_enough(repository):
    (repository / "inner").mkdir()
    (repository / "inner" / "new.py").write_text("")
    (repository / "other.py").write_text("")
    assert code(repository / "inner")[0]["untracked"] == ["inner/new.py", "other.py"]


def test_outside_of_a_repository_nothing_is_claimed(tmp_path):
    assert code(tmp_path) == (None, None)


def test_without_git_nothing_is_claimed(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code(repository) == (None, None)


@pytest.mark.parametrize("hanging", ["diff", "ls-files"])
def test_changes_that_take_too_long_to_find_are_not_called_none(repository, monkeypatch, tmp_path, hanging):
    (repository / "train.py").write_text("print(2)\n")
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    slow.write_text(f'#!/bin/sh\ncase "$3" in {hanging}) sleep 60;; esac\nexec {real} "$@"\n')
    slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "_SECONDS", 0.5)
    began = time.monotonic()
    details, digest = code(repository)
    assert time.monotonic() - began < 20  # though what holds the output open is a child of the script
    assert digest is None
    assert details["is_clean"] is None
    assert details["diff_nbytes"] is None
    assert len(details["commit"]) == 40


def test_the_environment_is_names_and_versions_without_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = capture_provenance(config={"lr": 0.1}, seed=7, dataset_digest=b"\1" * 32, folder=tmp_path)
    assert f"numpy=={np.__version__}" in found.details["environment"]["packages"]
    assert found.details["environment"]["python"].endswith(sys.version.split()[0])
    assert found.details["environment"]["variables"]["OMP_NUM_THREADS"] == "3"
    assert "hf_secret" not in json.dumps(found.details)
    assert found.details["seeds"]["seed"] == 7
    assert found.details["dataset_digest"] == "01" * 32
    assert found.environment_digest == capture_provenance(folder=tmp_path).environment_digest


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats()
    | st.text(st.characters(exclude_categories=())),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts) | st.lists(parts).map(tuple),
)


@given(JSON_VALUES)
def test_a_configuration_is_json_that_postgresql_holds(config):
    text = json.dumps(plain(config), allow_nan=False)
    assert "\\u0000" not in text
    text.encode()
    assert plain(plain(config)) == plain(config)


def test_configurations_of_many_kinds():
    @dataclass
    class Adam:
        lr: float
        betas: tuple[float, float]

    given_ = argparse.Namespace(optimizer=Adam(np.float32(0.5), (0.9, np.inf)), path=Path("a/b"), names={"b", "a"})
    assert plain(given_) == {
        "optimizer": {"lr": 0.5, "betas": [0.9, "Infinity"]}, "path": str(Path("a/b")), "names": ["a", "b"],
    }  # fmt: skip
    assert plain({"grid": np.arange(3)}) == {"grid": [0, 1, 2]}


def test_what_json_cannot_hold_is_told_by_its_place():
    with pytest.raises(ConfigurationError, match=r"config\['model'\]\[1\] is a object"):
        plain({"model": [1, object()]})
