"""``arc-halo model``."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest
from safetensors.numpy import save_file

from arc_halo.cli.output import size
from tests.fixtures.models import VOCABULARY, bert, llama, unknown, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.command_line import CommandLine

QUERY = "encoder.layer.1.attention.self.query.weight"


def changed_copy(folder: Path, seed: int = 1) -> Path:
    model = bert()
    arrays = model.arrays()
    arrays[QUERY] = np.random.default_rng(seed).standard_normal(arrays[QUERY].shape).astype(np.float32)
    return write_folder(model, folder, arrays=arrays)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_import_says_what_came_in(arc_halo: CommandLine, bert_folder: Path):
    (bert_folder / "pytorch_model.bin").write_bytes(b"")
    said = arc_halo.says("model", "import", bert_folder, "--name", "m")
    assert said.startswith("m@1\nbert, trained, ")
    assert "parameters" in said
    assert "ignored, as no part of the model: pytorch_model.bin" in said


def test_import_counts_what_it_does_not_know(arc_halo: CommandLine, tmp_path: Path):
    folder = write_folder(unknown(), tmp_path / "unknown")
    assert arc_halo.json("model", "import", folder, "--name", "m")["other_tensor_count"] == 5
    assert "5 tensors of no known role" in arc_halo.says("model", "import", folder, "--name", "m")


@pytest.mark.parametrize("compression", ["fast", "balanced", "dense", "none"])
def test_import_with_a_compression(arc_halo: CommandLine, bert_folder: Path, compression):
    told = arc_halo.json("model", "import", bert_folder, "--name", "m", "--compression", compression)
    assert (told["compressed_nbytes"] == 0) is (compression == "none")


def test_import_of_a_version_that_is_there(stored: CommandLine, bert_folder: Path):
    assert "has a version '1'" in stored.error("model", "import", bert_folder, "--name", "m", "--version", "1")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "bytes"), (b"\x80\x04.pickle", "pickle"), (b"\xff" * 16, "header"), (b"\x02\0\0\0\0\0\0\0[]", "header")],
)
def test_import_of_a_damaged_file(arc_halo: CommandLine, tmp_path: Path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert said in arc_halo.error("model", "import", path, "--name", "m")
    assert arc_halo.json("model", "list") == []


def test_import_of_nothing(arc_halo: CommandLine, tmp_path: Path):
    arc_halo.error("model", "import", tmp_path / "nowhere", "--name", "m")
    arc_halo.run("model", "import", tmp_path, code=2)  # without a name


def test_a_second_import_shares_everything(stored: CommandLine, bert_folder: Path):
    told = stored.json("model", "import", bert_folder, "--name", "again")
    assert (told["own_nbytes"], told["shared_nbytes"]) == (0, told["stored_nbytes"])
    assert "chunks that other models use, too" in stored.says("model", "show", "again")


def test_export_is_the_import(stored: CommandLine, bert_folder: Path, tmp_path: Path):
    told = stored.json("model", "export", "m@1", tmp_path / "out")
    names = {each.name for each in bert_folder.iterdir()}
    assert {path["path"].rsplit("/", 1)[-1] for path in told["files"]} == names
    assert all(sha256(tmp_path / "out" / name) == sha256(bert_folder / name) for name in names)


def test_export_where_nobody_may_write(stored: CommandLine, tmp_path: Path):
    (tmp_path / "file").touch()
    said = stored.error("model", "export", "m", tmp_path / "file")
    assert said.startswith(f"error: {tmp_path / 'file'} cannot be written: File exists; make space")


def test_list(stored: CommandLine):
    assert stored.json("model", "list")[0]["name"] == "m"
    assert stored.says("model", "list").splitlines()[1].split()[:4] == ["m", "1", "bert", "trained"]


def test_list_of_nothing(arc_halo: CommandLine):
    assert arc_halo.says("model", "list").startswith("no models yet")
    assert arc_halo.json("model", "list") == []


def test_show_folds_blocks_that_are_alike(stored: CommandLine):
    shown = stored.says("model", "show", "m")
    assert "encoder.layer.0 ... encoder.layer.1 (2x) block, 16 -> 16, 4 heads" in shown
    assert shown.count("feedforward") == 1


def test_show_adds_up(stored: CommandLine):
    told = stored.json("model", "show", "m")
    assert told["raw_nbytes"] - told["deduplicated_nbytes"] - told["compressed_nbytes"] == told["stored_nbytes"]
    assert sum(each["count"] * each["parameter_count"] for each in told["layers"]) == told["parameter_count"]
    assert told["buffer_element_count"] == 32


def test_verify(stored: CommandLine):
    assert stored.says("model", "verify", "m").startswith("m@1 is sound: ")
    assert stored.json("model", "verify", "m")["faults"] == []


def test_verify_names_what_a_flipped_bit_damaged(stored: CommandLine):
    flip = """
        UPDATE arc_halo.tensor_data SET payload = set_byte(payload, 0, get_byte(payload, 0) # 1)
         WHERE digest = (SELECT c.digest FROM arc_halo.tensor_chunks AS c JOIN arc_halo.model_weights AS w
                          USING (tensor_id) WHERE w.name = %s)"""
    with psycopg.connect(stored.url.replace("+psycopg", "")) as connection:
        connection.execute(flip, [QUERY])
    result = stored.run("model", "verify", "m", code=1)
    assert f"m@1: tensor '{QUERY}', chunk 0" in result.stdout
    assert result.stderr.startswith("error: m@1 is damaged: 1 fault")
    assert stored.json("model", "verify", "m", code=1)["faults"][0]["chunk_index"] == 0


def test_diff(stored: CommandLine, tmp_path: Path):
    stored.run("model", "import", changed_copy(tmp_path / "changed"), "--name", "m")
    told = stored.json("model", "diff", "m@1", "m@2")
    assert [(each["name"], each["change"]) for each in told["differences"]] == [(QUERY, "changed")]
    assert [each["name"] for each in told["distances"] if each["l2"]] == [QUERY]
    assert [each["name"] for each in told["layers"] if each["l2"]] == ["encoder.layer.1.attention"]
    header, layer, *rest = stored.says("model", "diff", "m@1", "m@2").splitlines()
    assert (header.split()[0], layer.split()[0]) == ("layer", "encoder.layer.1.attention")
    assert rest[0].endswith("layers are equal")
    for options in (("--tensors",), ("--digests",)):
        assert QUERY in stored.says("model", "diff", "m@1", "m@2", *options)


@pytest.mark.parametrize("name", ["moved.html", "moved.png"])
def test_diff_draws(stored: CommandLine, tmp_path: Path, name):
    stored.run("model", "import", changed_copy(tmp_path / "changed"), "--name", "m")
    stored.run("model", "diff", "m@1", "m@2", "--plot", tmp_path / name)
    assert (tmp_path / name).stat().st_size > 500
    stored.run("model", "diff", "m@1", "m@2", "--plot", tmp_path / "moved.gif", code=2)


def test_family(stored: CommandLine, tmp_path: Path):
    stored.run("model", "import", changed_copy(tmp_path / "changed"), "--name", "tuned", "--parent", "m")
    lines = stored.says("model", "family", "tuned").splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "m@1", "tuned@1"]
    assert "saved" in lines[-1]
    (root, child) = stored.json("model", "family", "m")
    assert (root["kind"], child["kind"], child["depth"]) == (None, "finetune", 1)


def test_family_names_versions_that_lineage_does_not_tie(stored: CommandLine, tmp_path: Path):
    stored.run("model", "import", changed_copy(tmp_path / "changed"), "--name", "m")
    told = stored.says("model", "family", "m").splitlines()[-1]
    assert told.startswith("m@1 is of a name above, but no lineage ties it in")
    stored.run("model", "import", changed_copy(tmp_path / "tied", 2), "--name", "m", "--parent", "m@2")
    assert stored.says("model", "family", "m").splitlines()[-1].startswith("m@1 is ")
    stored.run("model", "import", changed_copy(tmp_path / "other", 3), "--name", "n", "--parent", "m@1")
    stored.run("model", "delete", "m@2", "--yes")
    stored.run("model", "delete", "m@3", "--yes")
    assert stored.says("model", "family", "n").splitlines()[-1].endswith("saved")


@pytest.fixture
def tuned(arc_halo: CommandLine, tmp_path: Path) -> CommandLine:
    """With ``base@1``, and ``tuned@1`` that is stored as differences from one of its matrices."""
    random, folder = np.random.default_rng(0), tmp_path / "tuned"
    matrix = random.standard_normal((300, 300)).astype(np.float32)
    for name, moved in (("base", 0.0), ("tuned", 3e-5)):
        folder.mkdir(exist_ok=True)
        array = matrix + moved * random.standard_normal(matrix.shape).astype(np.float32)
        save_file({"w": array}, folder / "model.safetensors")
        base = "none" if name == "base" else "base"
        arc_halo.run("model", "import", folder / "model.safetensors", "--name", name, "--base", base)
    return arc_halo


def row(said: str, what: str) -> str:
    (found,) = [line.removeprefix(what).strip() for line in said.splitlines() if line.startswith(what)]
    return found


def test_show_tells_differences_from_compression(tuned: CommandLine):
    said, told = tuned.says("model", "show", "tuned"), tuned.json("model", "show", "tuned")
    assert row(said, "differences") == f"{size(-told['delta_saved_nbytes'])}  1 tensor leans on base@1"
    assert row(said, "compression").startswith(size(told["delta_saved_nbytes"] - told["compressed_nbytes"]))
    assert told["base_models"] == ["base@1"]
    assert told["base_nbytes"] == tuned.json("model", "show", "base")["own_nbytes"]
    assert "leaned on" not in said


def test_what_others_lean_on_frees_less(tuned: CommandLine):
    said, told = tuned.says("model", "show", "base"), tuned.json("model", "show", "base")
    own = size(told["own_nbytes"])
    assert told["leaned_on_nbytes"] == told["own_nbytes"]
    assert row(said, "its own") == f"{own}  what deleting it would free at most"
    assert row(said, "leaned on") == f"{own}  of its own: differences of tuned@1 are from these, and grow when it goes"
    asked = tuned.run("model", "delete", "base", answer="y\n")
    assert (
        f"Delete base@1 ({own} that no other model uses; differences of tuned@1 are from {own} of it)?" in asked.stderr
    )
    assert f"frees up to {own} after the grace period, less what differences of tuned@1 grow by" in asked.stdout
    assert tuned.json("prune", "--grace", "0")["stored_nbytes"] < told["own_nbytes"]
    assert tuned.json("model", "verify", "tuned")["faults"] == []


def test_repack(stored: CommandLine):
    told = stored.json("model", "repack", "m", "--compression", "none")
    assert told["after_nbytes"] >= told["before_nbytes"]
    assert "anew" in stored.says("model", "repack", "m", "--family", "--compression", "dense")


def test_an_import_with_an_id_is_done_once(stored: CommandLine, tmp_path: Path):
    folder = changed_copy(tmp_path / "changed")
    op_id = "0190d1b5-0000-7000-8000-000000000001"
    for _ in range(2):
        stored.run("model", "import", folder, "--name", "once", "--op-id", op_id, "--base", "none")
    assert [each["version"] for each in stored.json("model", "list") if each["name"] == "once"] == ["1"]


def test_verify_and_repair_everything(stored: CommandLine, tmp_path: Path):
    stored.run("model", "export", "m", tmp_path / "copy")
    assert stored.says("verify").startswith("sound: ")
    assert stored.json("verify", "--percent", "50")["faults"] == []
    with psycopg.connect(stored.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("UPDATE arc_halo.tensor_data SET payload_checksum = payload_checksum + 1")
    assert "damaged" in stored.error("verify")
    assert "still damaged, for no copy given has the bytes: " in stored.error("repair")
    assert "put right" in stored.says("repair", "m", "--from", tmp_path / "copy")
    assert stored.json("verify")["faults"] == []


def test_diff_says_what_is_not_compared(stored: CommandLine, tmp_path: Path):
    stored.run("model", "import", write_folder(bert(hidden=24), tmp_path / "wide"), "--name", "wide")
    assert "tensors not compared number by number: 16 x 16 against 24 x 24" in stored.says("model", "diff", "m", "wide")


def test_diff_of_equals(stored: CommandLine):
    assert stored.says("model", "diff", "m", "m").startswith("0 tensors differ, by 0 bytes")


def test_similar(stored: CommandLine):
    found = stored.json("model", "similar", "m", "king", "-k", "4")
    assert len(found) == 4
    assert {each["token"] for each in found} < set(VOCABULARY) - {"king"}
    lines = stored.says("model", "similar", "m", "king", "-k", "4").splitlines()
    assert [line.split()[0] for line in lines] == ["token", *(each["token"] for each in found)]


def test_similar_to_what_is_not_there(stored: CommandLine, tmp_path: Path):
    assert "no token 'kin'" in stored.error("model", "similar", "m", "kin")
    stored.run("model", "similar", "m", "king", "-k", "0", code=2)
    folder = write_folder(llama(), tmp_path / "llama")
    stored.run("model", "import", folder, "--name", "mute", "--no-embeddings")
    assert "no searchable token embeddings" in stored.error("model", "similar", "mute", "king")


def test_delete_asks(stored: CommandLine):
    stored.run("model", "delete", "m", answer="n\n", code=1)
    unasked = stored.run("model", "delete", "m", answer="", code=1).stderr
    assert unasked.splitlines()[-1].startswith("error: nobody can be asked")
    assert "--yes" in unasked
    assert len(stored.json("model", "list")) == 1
    assert "deleted m@1; " in stored.says("model", "delete", "m", answer="y\n")
    assert stored.json("model", "list") == []


def test_delete_only_that_version(stored: CommandLine, bert_folder: Path):
    stored.run("model", "import", bert_folder, "--name", "m")
    assert stored.json("model", "delete", "m", "--yes")["deleted"] == "m@2"
    assert [each["version"] for each in stored.json("model", "list")] == ["1"]


def test_alias(stored: CommandLine):
    assert stored.says("model", "alias", "m@1", "production") == "m@production is m@1\n"
    assert stored.json("model", "show", "m@production")["aliases"] == ["production"]
    assert stored.json("model", "list")[0]["aliases"] == ["production"]
    assert stored.json("model", "alias", "m", "staging")["version"] == "1"


@pytest.mark.parametrize("alias", ["", "a@b", "1"])
def test_an_alias_that_cannot_be(stored: CommandLine, alias):
    stored.run("model", "alias", "m", alias, code=2)


def test_trainable(stored: CommandLine):
    frozen = stored.json("model", "trainable", "m", "embeddings.*", "--freeze")
    assert 0 < frozen["trainable_parameter_count"] < frozen["parameter_count"]
    assert "frozen" in stored.says("model", "show", "m")
    said = stored.says("model", "trainable", "m", "*", "--train")
    assert said.endswith(f"; {frozen['parameter_count']:,} of {frozen['parameter_count']:,} are trainable\n")


def test_trainable_needs_a_pattern_that_matches_and_a_direction(stored: CommandLine):
    assert "no tensor 'nothing.*'" in stored.error("model", "trainable", "m", "nothing.*", "--freeze")
    stored.run("model", "trainable", "m", "*", code=2)


@pytest.mark.parametrize("command", ["show", "verify", "delete --yes", "diff m", "similar {} king", "export {} /tmp"])
def test_a_model_that_is_not_there(stored: CommandLine, command):
    verb, *rest = command.replace("{}", "nobody").split()
    words = rest if "nobody" in rest else [*rest, "nobody"]
    assert "no model 'nobody'; there are m" in stored.error("model", verb, *words)


def test_diff_of_strangers(stored: CommandLine, tmp_path: Path):
    stored.run("model", "import", write_folder(unknown(), tmp_path / "unknown"), "--name", "u")
    first, second = (stored.json("model", "show", each)["tensor_count"] for each in ("m", "u"))
    for options in ((), ("--digests",)):
        *_, said = stored.says("model", "diff", "m", "u", *options).splitlines()
        assert said.startswith(
            f"no tensor of the two has the same name: {first} are only in m@1 (bert), {second} only in u@1"
        )
