"""Layers and heads from a config, names and shapes: a JSON object of ``config`` and ``tensors``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arc_halo.dtypes import DTYPES
from arc_halo.formats.architectures import TensorShape, describe
from arc_halo.formats.strict_json import parse_object
from tests.fixtures.models import bert, distilbert, gpt2, llama, mixtral, qwen_moe, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODELS = (
    bert(blocks=1),
    distilbert(blocks=1),
    gpt2(blocks=1),
    llama(blocks=1),
    mixtral(blocks=1),
    qwen_moe(),
    unknown(),
)
TOKENS = tuple(
    sorted({f'"{key}"'.encode() for model in MODELS for key in model.config})
    + sorted({part.encode() for model in MODELS for name in model.shapes for part in name.split(".")})
)


def read(data: bytes, folder: Path) -> object:  # noqa: ARG001  # every target is given one
    parsed = parse_object(data, "input")
    config, shapes = parsed.get("config"), parsed.get("tensors")
    if not isinstance(config, dict) or not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        return None
    tensors = {name: TensorShape(name, DTYPES["F32"], tuple(shape)) for name, shape in shapes.items()}
    found = describe(config, tensors)
    assert [weight.name for weight in found.weights] == list(tensors)
    keys = {layer.key for layer in found.layers}
    assert {weight.layer_key for weight in found.weights} <= keys
    for head in found.heads:
        for part in (head.query, head.key, head.value, head.output):
            assert 0 <= part.start < part.stop <= tensors[part.tensor].shape[part.axis]
    json.dumps([layer.config for layer in found.layers])
    return found


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def mend(data: bytes) -> bytes:
    return data


def seeds() -> Iterator[bytes]:
    for model in MODELS:
        yield json.dumps({"config": model.config, "tensors": model.shapes}, separators=(",", ":")).encode()
