"""What is to be said of one model: parameters, layers, and where its bytes went."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from arc_halo.cli.output import console, count, print_table, say, shown, size, some

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model
    from arc_halo.schema.outline import Branch


def describe(session: Session, model: Model) -> dict[str, Any]:
    """Everything but the layer tree, as ``--json`` prints it."""
    from arc_halo.registry import measure_storage
    from arc_halo.registry.leaning import measure_leaning
    from arc_halo.registry.origins import origin_of

    storage = measure_storage(session, model)
    return {
        "id": model.id,
        "name": model.name,
        "version": model.version,
        "aliases": sorted(alias.alias for alias in model.aliases),
        "model_type": model.model_type,
        "status": model.status,
        "created_at": model.created_at,
        "weights_digest": model.weights_digest,
        "origin": origin_of(model),
        **_counted(session, model),
        "raw_nbytes": storage.raw_nbytes,
        "deduplicated_nbytes": storage.deduplicated_nbytes,
        "compressed_nbytes": storage.compressed_nbytes,
        "stored_nbytes": storage.stored_nbytes,
        "shared_nbytes": storage.shared_nbytes,
        "own_nbytes": storage.own_nbytes,
        "base_nbytes": storage.base_nbytes,
        **asdict(measure_leaning(session, model)),
        "chunk_count": storage.chunk_count,
        "quantization": _quantization(model),
    }


def _quantization(model: Model) -> dict[str, Any] | None:
    """The scheme of a quantised model, what its codes stand for, and as how many parameters they are counted."""
    from arc_halo.quantization import Description, scheme

    found = Description.of(model.architecture_config)
    if found is None:
        return None
    numbers = sum(prod(each.shape) for each in found.tensors.values())
    codes = sum(prod(scheme(found.scheme).codes_shape(each.shape)) for each in found.tensors.values())
    return {
        "scheme": found.scheme,
        "tensor_count": len(found.tensors),
        "element_count": numbers,
        "code_element_count": codes,
    }


def _counted(session: Session, model: Model) -> dict[str, int]:
    from sqlalchemy import func, select

    from arc_halo.schema import Model, ModelWeight, Tensor, TransformerLayer

    is_buffer, is_other = ModelWeight.category == "buffer", TransformerLayer.layer_type == "other"
    weights = (
        select(
            func.count().label("tensor_count"),
            func.coalesce(func.sum(Tensor.element_count).filter(is_buffer), 0).label("buffer_element_count"),
            func.count().filter(is_other).label("other_tensor_count"),
        )
        .select_from(ModelWeight)
        .join(Tensor, Tensor.id == ModelWeight.tensor_id)
        .outerjoin(TransformerLayer, TransformerLayer.id == ModelWeight.layer_id)
        .where(ModelWeight.model_id == model.id)
    )
    parameters = select(Model.parameter_count, Model.trainable_parameter_count).where(Model.id == model.id)
    counted = {**session.execute(parameters).one()._mapping, **session.execute(weights).one()._mapping}  # noqa: SLF001  # a row's documented mapping
    return {str(name): int(number) for name, number in counted.items()}


def print_description(described: dict[str, Any]) -> None:
    """The model's name, its parameters, and a table of where its bytes went and why."""
    aliases = f", also {', '.join(shown(alias) for alias in described['aliases'])}" if described["aliases"] else ""
    say((f"{shown(described['name'])}@{shown(described['version'])}", "bold"), aliases)
    buffers = described["buffer_element_count"]
    say(
        f"{shown(described['model_type'])}, {described['status']}, {count(described['tensor_count'], 'tensor')}: ",
        (count(described["parameter_count"], "parameter"), "bold"),
        f" ({described['trainable_parameter_count']:,} trainable)",
        f" and {count(buffers, 'element')} of buffers" if buffers else "",
    )
    if origin := described["origin"]:
        say(f"from {shown(origin['source'])}, commit {shown(origin['commit'])}")
    if quantization := described["quantization"]:
        codes = f"{quantization['scheme']} codes of {count(quantization['tensor_count'], 'tensor')} "
        numbers, elements = quantization["element_count"], quantization["code_element_count"]
        counted = (
            "" if numbers == elements else f", counted above as {count(elements, 'parameter')}, the bytes they fill"
        )
        say(codes, f"stand for {count(numbers, 'number')}{counted}")
    rows = [(what, size(nbytes), why) for what, nbytes, why in _bytes(described)]
    print_table(["bytes", "size", "why"], rows, right=["size"])


def _bytes(described: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    saved, shared, leaned_on = (described[each] for each in ("delta_saved_nbytes", "shared_nbytes", "leaned_on_nbytes"))
    yield "as in files", described["raw_nbytes"], "every tensor at its full length"
    yield "deduplication", -described["deduplicated_nbytes"], "chunks the model repeats are stored once"
    yield "compression", saved - described["compressed_nbytes"], "lossless"
    if leaning := described["delta_tensor_count"]:
        bases = some(described["base_models"]) or "others"
        yield "differences", -saved, f"{count(leaning, 'tensor')} {'leans' if leaning == 1 else 'lean'} on {bases}"
    yield "stored", described["stored_nbytes"], count(described["chunk_count"], "chunk")
    yield "shared", -shared, "chunks that other models use, too" if shared else "no other model uses any of its chunks"
    yield "its own", described["own_nbytes"], "what deleting it would free" + (" at most" if leaned_on else "")
    if leaned_on:
        others = some(described["leaning_models"])
        yield "leaned on", leaned_on, f"of its own: differences of {others} are from these, and grow when it goes"


def print_tree(title: str, branches: Iterable[Branch]) -> None:
    """The layer tree; layers that are alike and follow each other are one line."""
    tree = Tree(Text(shown(title), "bold"))
    _grow(tree, branches)
    console().print(tree)


def _grow(tree: Tree, branches: Iterable[Branch]) -> None:
    for branch in branches:
        line = Text.assemble((shown(branch.label), "bold" if branch.children else ""), " ", (_facts(branch), "dim"))
        _grow(tree.add(line), branch.children)


def _facts(branch: Branch) -> str:
    facts = [branch.layer_type] if branch.layer_type not in branch.first else []
    if branch.input_dim is not None and branch.output_dim is not None:
        facts.append(f"{branch.input_dim:,} -> {branch.output_dim:,}")
    if branch.head_count:
        facts.append(count(branch.head_count, "head"))
    facts.append(count(branch.parameter_count, "parameter") + (" each" if branch.count > 1 else ""))
    if branch.trainable_parameter_count < branch.parameter_count:
        frozen = branch.parameter_count - branch.trainable_parameter_count
        facts.append("frozen" if not branch.trainable_parameter_count else f"{frozen:,} of them frozen")
    facts.append(size(branch.nbytes))
    return ", ".join(facts)
