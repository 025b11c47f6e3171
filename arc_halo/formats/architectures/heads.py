"""Attention heads: which rows or columns of Q, K, V and O are each head's, checked against the shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arc_halo.errors import ModelFolderError
from arc_halo.formats.architectures.description import HeadSlice, HeadSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arc_halo.formats.architectures.abc import Family, Projections
    from arc_halo.formats.architectures.description import Shaped

# Above any model there is; a config that asks for 2**40 heads must not be believed before memory is spent on them.
MAX_HEADS = 4096


@dataclass(frozen=True, slots=True)
class HeadCounts:
    """What config.json says of heads: query heads, key/value heads, and the length of a head where it is given."""

    query: int
    key_value: int
    head_dim: int | None


def read_counts(family: Family, config: Mapping[str, object]) -> HeadCounts:
    """Read the head counts from a config.

    Raises
    ------
    ModelFolderError
        A count is missing, is no integer from 1 to 4,096, or the counts do not divide.
    """
    query = _count(config, family.heads)
    if query is None:
        raise ModelFolderError(f"config has no {family.heads}")
    key_value = _count(config, family.kv_heads) or query
    if query % key_value:
        raise ModelFolderError(f"{family.heads} {query} is no multiple of {family.kv_heads} {key_value}")
    return HeadCounts(query, key_value, _count(config, family.head_dim))


def _count(config: Mapping[str, object], field: str) -> int | None:
    value = config.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_HEADS:
        raise ModelFolderError(f"{field} is no integer from 1 to {MAX_HEADS}")
    return value


def _stacked(tensors: Sequence[Shaped], lengths: Sequence[int]) -> tuple[list[int], dict[str, int]]:
    """Where each projection begins in its tensor and each tensor must end; fused ones stand one after another."""
    begins: list[int] = []
    ends: dict[str, int] = {}
    for tensor, length in zip(tensors, lengths, strict=True):
        begins.append(ends.get(tensor.name, 0))
        ends[tensor.name] = begins[-1] + length
    return begins, ends


def cut_heads(
    layer_key: str,
    counts: HeadCounts,
    projections: Projections,
    weights: Mapping[str, Shaped],
    *,
    transposed: bool,
) -> list[HeadSpec]:
    """Cut the projections of one attention layer into heads.

    Parameters
    ----------
    weights
        The layer's matrices by the path that the family's module owns them at.
    transposed
        Matrices are [input, output].

    Raises
    ------
    ModelFolderError
        A shape contradicts the counts.
    """
    output_axis, input_axis = (1, 0) if transposed else (0, 1)
    query, key, value = (weights[path] for path in (projections.query, projections.key, projections.value))
    output = weights[projections.output]
    if any(len(tensor.shape) != 2 for tensor in (query, key, value, output)):  # noqa: PLR2004  # matrices
        raise ModelFolderError(f"{layer_key}: projections are not matrices")
    head_dim = output.shape[input_axis] // counts.query
    if counts.head_dim not in {None, head_dim}:
        raise ModelFolderError(
            f"{layer_key}: head_dim {counts.head_dim} contradicts {output.name} {list(output.shape)}"
        )
    lengths = (counts.query * head_dim, counts.key_value * head_dim, counts.key_value * head_dim)
    begins, ends = _stacked((query, key, value), lengths)
    sizes = {tensor.name: tensor.shape[output_axis] for tensor in (query, key, value)}
    if not head_dim or sizes != ends or output.shape[input_axis] != lengths[0]:
        raise ModelFolderError(
            f"{layer_key}: {counts.query} heads and {counts.key_value} key/value heads do not fit its shapes"
        )

    def cut(tensor: Shaped, axis: int, begin: int, index: int) -> HeadSlice:
        start = begin + index * head_dim
        return HeadSlice(tensor.name, axis, start, start + head_dim)

    sharing = counts.query // counts.key_value
    return [
        HeadSpec(
            layer_key=layer_key,
            head_index=head,
            head_dim=head_dim,
            kv_group=head // sharing,
            query=cut(query, output_axis, begins[0], head),
            key=cut(key, output_axis, begins[1], head // sharing),
            value=cut(value, output_axis, begins[2], head // sharing),
            output=cut(output, input_axis, 0, head),
        )
        for head in range(counts.query)
    ]
