"""A checkpoint's rows as `torch.distributed.checkpoint` wants to be told of them, and the bytes it then asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from arc_halo.dtypes import by_name
from arc_halo.errors import CheckpointError
from arc_halo.integrations.dcp.layout import Hyperparameter, Layout, Path, State, Weight, joined_name
from arc_halo.integrations.torch import from_numpy
from arc_halo.integrations.torch_training.capturing import OURS
from arc_halo.integrations.torch_trees import from_plain
from arc_halo.store import Wanted
from arc_halo.store.ranges import Rows, get_row_ranges
from arc_halo.training.assembling import assemble
from arc_halo.training.contents import arrays_below
from arc_halo.training.finding import find_checkpoint
from arc_halo.training.loading import checked_entries, load_checkpoint
from arc_halo.training.optimizer import put_optimizer_together
from arc_halo.training.trees import decode_tree

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session
    from torch.distributed.checkpoint.planner import ReadItem

    from arc_halo.schema import ModelCheckpoint
    from arc_halo.training.finding import CheckpointReference
    from arc_halo.training.manifest import Entry

NOTE: Final = "state_dict"
"""Where ``extra`` says how the state dict looked, and keeps what is neither weights nor the optimizer's."""


@dataclass(slots=True)
class Catalogue:
    """What a checkpoint holds, under the names that planners ask by.

    Attributes
    ----------
    values
        What is no tensor, by name.
    """

    checkpoint_id: uuid.UUID
    step: int
    metadata: Metadata
    values: dict[str, Any] = field(default_factory=dict)
    _stored: dict[MetadataIndex, Entry] = field(default_factory=dict)
    _in_memory: dict[str, torch.Tensor] = field(default_factory=dict)

    def read(self, session: Session, items: Iterable[ReadItem]) -> Iterator[tuple[ReadItem, torch.Tensor]]:
        """The block that each item asks for, in an order of our own.

        Raises
        ------
        CorruptionError
            Stored bytes are not those that were written.
        """
        asked: dict[MetadataIndex, list[ReadItem]] = {}
        for item in items:
            if (tensor := self._in_memory.get(item.storage_index.fqn)) is not None:
                yield item, _block(tensor, item)
            else:
                asked.setdefault(item.storage_index, []).append(item)
        wanted = [_rows(self._stored[index], of_index) for index, of_index in asked.items()]
        for array, rows, of_index in zip(get_row_ranges(session, wanted), wanted, asked.values(), strict=True):
            tensor = from_numpy(array, rows.wanted.name)
            for item in of_index:
                yield item, _block(tensor, item, rows.start)

    def add_entry(self, path: Path, entry: Entry) -> None:
        """A tensor, or a part of one, that is read when it is asked for."""
        assert entry.dtype is not None
        offsets = entry.offsets or (0,) * len(entry.shape)
        numpy = by_name(entry.dtype).numpy
        if numpy is None:
            raise CheckpointError(
                f"{entry.where} is {entry.dtype}, which PyTorch does not have; load it by load_checkpoint"
            )
        dtype = from_numpy(np.empty(0, numpy)).dtype
        index = self._add_tensor(path, dtype, entry.full_shape or entry.shape, offsets, entry.shape)
        self._stored[index] = entry

    def add_value(self, path: Path, value: Any) -> None:
        """What is there already: a tensor, or a plain value."""
        if isinstance(value, torch.Tensor):
            self._add_tensor(path, value.dtype, value.shape, (0,) * value.ndim, value.shape)
            self._in_memory[joined_name(path)] = value
        else:
            name = self._add_path(path)
            self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
            self.values[name] = value

    def _add_tensor(
        self, path: Path, dtype: torch.dtype, size: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
    ) -> MetadataIndex:
        name = self._add_path(path)
        whole = TensorStorageMetadata(TensorProperties(dtype), torch.Size(size), [])
        known = self.metadata.state_dict_metadata.setdefault(name, whole)
        assert isinstance(known, TensorStorageMetadata)
        known.chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        return MetadataIndex(name, offsets)

    def _add_path(self, path: Path) -> str:
        name = joined_name(path)
        self.metadata.planner_data[name] = path
        return name


def open_checkpoint(session: Session, reference: CheckpointReference) -> Catalogue:
    """Read a checkpoint's rows, compared with its digest; of its tensors only those that are small or no weights.

    Raises
    ------
    CheckpointNotFound, ModelNotFound
        There is none.
    DigestMismatch
        A row was changed, added or removed since it was published.
    """
    found = find_checkpoint(session, reference)
    entries = checked_entries(session, found)
    others = [entry for entry in entries if entry.key.component == "other"]
    arrays = arrays_below(assemble(session, others), "other")
    extra = None if found.extra_state is None else decode_tree(found.extra_state, arrays)
    of_ranks = [decode_tree(state, arrays) for state in (found.data_loader_state or {}).values()]
    notes = [tree[NOTE] for tree in (extra, *of_ranks) if isinstance(tree, dict) and NOTE in tree]
    layout = _layout(extra)
    further = {joined_name(tuple(path)): tuple(path) for note in notes for path in note["further_weights"]}
    catalogue = Catalogue(found.id, found.step, Metadata({}, planner_data={}))
    for entry in entries:
        if entry.key.component == "weights":
            for path in _paths(entry.key.name, layout, further, _aliases(extra)):
                catalogue.add_entry(path, entry)
        elif entry.key.component == "optimizer" and entry.number is None:
            catalogue.add_entry(layout.path(State(entry.key.name, entry.key.state)), entry)
    if found.optimizer_groups is not None:
        _add_optimizer(catalogue, layout, found, entries, arrays)
    for path, value in {tuple(path): value for note in notes for path, value in note["entries"]}.items():
        catalogue.add_value(path, from_plain(value))
    return catalogue


def own_states(session: Session, checkpoint_id: uuid.UUID, rank: int) -> tuple[Any, Any]:
    """Random states and data position of one rank."""
    loaded = load_checkpoint(session, checkpoint_id, components=("rng", "other"), rank=rank)
    data_loader = loaded.data_loader
    if isinstance(data_loader, dict) and NOTE in data_loader:
        data_loader = data_loader[NOTE]["data_loader"]
    return loaded.rng, data_loader


def _layout(extra: Any) -> Layout:
    """How the state dict looked; checkpoints that were saved otherwise are shown as `get_state_dict` has them."""
    if not isinstance(extra, dict) or NOTE not in extra:
        return Layout()
    roots = {root: None if extra[NOTE][root] is None else tuple(extra[NOTE][root]) for root in ("weights", "optimizer")}
    return Layout(**roots, is_joined=extra[NOTE]["is_joined"])


def _aliases(extra: Any) -> Mapping[str, str]:
    """Further names of tied weights, which `capture_state` stores once."""
    known: Mapping[str, str] = extra.get(OURS, {}).get("aliases", {}) if isinstance(extra, dict) else {}
    return known


def _paths(name: str, layout: Layout, further: Mapping[str, Path], aliases: Mapping[str, str]) -> list[Path]:
    if name in further:
        return [further[name]]
    tied = [alias for alias, first in aliases.items() if first == name]
    return [layout.path(Weight(each)) for each in (name, *tied)]


def _add_optimizer(
    catalogue: Catalogue,
    layout: Layout,
    checkpoint: ModelCheckpoint,
    entries: Iterable[Entry],
    arrays: Mapping[str, np.ndarray],
) -> None:
    numbers = [(entry.key.name, entry.key.state, entry.number) for entry in entries if entry.number is not None]
    snapshot = put_optimizer_together(decode_tree(checkpoint.optimizer_groups, arrays), numbers)
    for parameter, states in snapshot.states.items():
        for name, value in states.items():
            shown = from_numpy(value) if isinstance(value, np.ndarray) else from_plain(value)
            catalogue.add_value(layout.path(State(parameter, name)), shown)
    for index, group in enumerate(snapshot.groups):
        owners = list(group["params"]) if layout.is_joined else [index]
        for name, value in group.items():
            if not (layout.is_joined and name == "params"):
                for owner in owners:
                    catalogue.add_value(layout.path(Hyperparameter(owner, name)), from_plain(value))


def _rows(entry: Entry, items: Sequence[ReadItem]) -> Rows:
    """Rows of a part that hold the blocks of all items."""
    assert entry.tensor_id is not None
    wanted = Wanted(entry.where, entry.tensor_id, entry.nbytes)
    if not entry.shape:
        return Rows(wanted, 0, 0)
    start = min(item.storage_offsets[0] for item in items)
    return Rows(wanted, start, max(item.storage_offsets[0] + item.lengths[0] for item in items))


def _block(tensor: torch.Tensor, item: ReadItem, first_row: int = 0) -> torch.Tensor:
    for axis, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        tensor = tensor.narrow(axis, offset - (first_row if axis == 0 else 0), length)
    return tensor
