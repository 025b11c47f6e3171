"""A state copied into memory that is used again for the next one, so that training goes on while it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from arc_halo.training.trees import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterable

State = TypeVar("State")
_THREADS: Final = 2
_PIECE_NBYTES: Final = 8 << 20
_Piece = tuple[np.ndarray, np.ndarray]


class StateCopier:
    """Copies states, one at a time: what the last call returned is overwritten by the next.

    As much memory is kept as the largest of one shape needs: an array goes into the room that the one of the same place
    had before, if it still fits.
    """

    def __init__(self) -> None:
        self._rooms: dict[tuple[Any, ...], np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are kept."""
        return sum(room.nbytes for room in self._rooms.values())

    def copy(self, state: State) -> State:
        """A copy that shares no memory with a state: a nesting of dataclasses, dicts, lists and tuples over arrays.

        Arrays that are one in the state, as tied weights are, are one in the copy. What is no array is kept as it is.
        """
        copied = _Copied(self._rooms)
        result: State = copied.of(state, ())
        self._rooms = copied.rooms  # what has no place in this state any more is given back before memory is touched
        _copy_all(copied.pending)
        return result


class _Copied:
    def __init__(self, rooms: Mapping[tuple[Any, ...], np.ndarray]) -> None:
        self.rooms: dict[tuple[Any, ...], np.ndarray] = {}
        self.pending: list[_Piece] = []
        self._old = rooms
        self._seen: dict[tuple[Any, ...], np.ndarray] = {}

    def of(self, value: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value, place)
        if len(place) > MAX_DEPTH:
            return value  # or without end, if it holds itself; whoever saves it says so
        if isinstance(value, Mapping | list):
            return self._items(value, place)
        if type(value) is tuple or (isinstance(value, tuple) and hasattr(value, "_fields")):
            parts = [self.of(part, (*place, index)) for index, part in enumerate(value)]
            return tuple(parts) if type(value) is tuple else type(value)(*parts)
        if is_dataclass(value) and not isinstance(value, type):
            named = {each.name: self.of(getattr(value, each.name), (*place, each.name)) for each in fields(value)}
            return replace(value, **named)
        return value

    def _items(self, value: Any, place: tuple[Any, ...]) -> Any:
        """Of the type it has, so that whoever saves it sees no other."""
        copied = copy(value) if isinstance(value, dict | list) else dict(value)
        for key, part in enumerate(value) if isinstance(value, list) else value.items():
            copied[key] = self.of(part, (*place, key))
        return copied

    def _array(self, array: np.ndarray, place: tuple[Any, ...]) -> np.ndarray:
        same = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str, array.dtype.name)
        if same not in self._seen:
            room = self._old.get(place)
            if room is None or room.shape != array.shape or room.dtype != array.dtype:
                room = np.empty(array.shape, array.dtype)
            self.rooms[place] = self._seen[same] = room
            self.pending += _pieces(room, array)
        return self._seen[same]


def _pieces(target: np.ndarray, source: np.ndarray) -> Iterable[_Piece]:
    """Parts that several threads may copy; bytes where both are contiguous, which numpy copies without its lock."""
    if not source.flags.c_contiguous or not source.nbytes:
        return [(target, source)]
    flat, raw = target.reshape(-1).view(np.uint8), source.reshape(-1).view(np.uint8)
    return [(flat[at : at + _PIECE_NBYTES], raw[at : at + _PIECE_NBYTES]) for at in range(0, len(raw), _PIECE_NBYTES)]


def _copy_all(pieces: list[_Piece]) -> None:
    if sum(target.nbytes for target, _ in pieces) <= _PIECE_NBYTES:
        _copy(pieces)
        return
    with ThreadPoolExecutor(_THREADS, "arc-halo-copy") as pool:
        list(pool.map(_copy, (pieces[number::_THREADS] for number in range(_THREADS))))


def _copy(pieces: list[_Piece]) -> None:
    for target, source in pieces:
        np.copyto(target, source)
