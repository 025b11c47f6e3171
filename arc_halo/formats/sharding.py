"""Weights in several files with an index beside them, as the hub and ``transformers`` lay them out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([KMGT]?)(i?)B?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def plan_shards(sizes: Mapping[str, int], max_nbytes: int) -> dict[str, list[str]]:
    """Tensor names by the file they go to, in the order they are given.

    A file holds as many as fit; a tensor that is larger by itself has a file of its own. One file is
    ``model.safetensors``, several are ``model-00001-of-0000N.safetensors``.

    Raises
    ------
    ConfigurationError
        The limit is no positive number.
    """
    if max_nbytes <= 0:
        raise ConfigurationError(f"a shard of {max_nbytes} bytes holds nothing; give a size such as 5GB")
    shards: list[list[str]] = [[]]
    filled = 0
    for name, nbytes in sizes.items():
        if shards[-1] and filled + nbytes > max_nbytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    if len(shards) == 1:
        return {WEIGHTS_NAME: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, 1)}


def build_index(shards: Mapping[str, Sequence[str]], total_nbytes: int) -> bytes:
    """``model.safetensors.index.json`` for shards as `plan_shards` gives them."""
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_nbytes}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2).encode() + b"\n"


def parse_size(text: str) -> int:
    """Bytes of a size such as ``5GB``, ``500 MB`` or ``2GiB``; without an ``i`` units are decimal.

    Raises
    ------
    ConfigurationError
        It is no size, or nothing.
    """
    match = _SIZE.fullmatch(text.strip())
    nbytes = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].upper()]) if match else 0
    if nbytes <= 0:
        raise ConfigurationError(f"{text!r:.40} is no size; write one such as 5GB or 500MB")
    return nbytes
