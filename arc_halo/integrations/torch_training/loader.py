"""A DataLoader that knows where it stands, and goes on from there with the same batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from arc_halo.errors import StateMismatch
from arc_halo.integrations.torch_training.rng import capture_rng, restore_rng

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch


class ResumableLoader:
    """The batches of a ``DataLoader``, from any of them on.

    Its state is the number of batches taken in this epoch, and the random states that the epoch began with, from which
    a shuffling sampler draws the same order again. Batches that were taken are passed over by their indices alone;
    with workers or an iterable data set they are loaded again, so that whatever workers draw is drawn again, too.
    Persistent workers keep random states that nobody can read: what they draw in later epochs does not come again.

    Parameters
    ----------
    loader
        Iterated here alone, by one iterator at a time.

    Attributes
    ----------
    epoch
        Number of epochs that were finished.

    Examples
    --------
    >>> loader = ResumableLoader(DataLoader(dataset, batch_size=32, shuffle=True))  # doctest: +SKIP
    >>> for epoch in range(loader.epoch, epochs):  # doctest: +SKIP
    ...     for batch in loader:
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.epoch = 0
        self._sampler: Any = loader.sampler
        self._taken = 0
        self._begun: dict[str, Any] | None = None
        self._is_resuming = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._resumed() if self._is_resuming else self._started()
        for batch in iterator:
            self._taken += 1
            yield batch
        self.epoch += 1
        self._taken, self._begun = 0, None

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: between epochs, or after a batch of one."""
        state: dict[str, Any] = {"epoch": self.epoch, "taken": self._taken, "batches": self._length()}
        # Between epochs only the caller's own generators matter, which the next epoch draws from.
        return state | {"random": self._begun or capture_rng(self._generators(), cuda=False)} | self._sampler_epoch()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there at the next iteration.

        Raises
        ------
        StateMismatch
            The loader has another number of batches, or other generators.
        """
        if state["batches"] != self._length():
            raise StateMismatch(
                f"the loader gives {self._length()} batches in an epoch and gave {state['batches']} when its state was "
                "saved, so its position means nothing here; use the same data set, batch size and sampler"
            )
        generators = self._generators()
        stored = state["random"].get("generators", {})
        if generators.keys() != stored.keys():
            raise StateMismatch(
                f"the loader draws from {_named(generators)} and drew from {_named(stored)} when its state was saved; "
                "give sampler and loader a generator where they had one"
            )
        self.epoch, self._taken = state["epoch"], state["taken"]
        if "sampler_epoch" in state:
            self._sampler.set_epoch(state["sampler_epoch"])
        self._is_resuming = self._taken > 0
        self._begun = dict(state["random"]) if self._is_resuming else None
        if not self._is_resuming:
            self._set_generators(stored)

    def _started(self) -> Iterator[Any]:
        self._begun, self._taken = capture_rng(self._generators(), cuda=False), 0
        return iter(self.loader)

    def _resumed(self) -> Iterator[Any]:
        """An iterator behind the batches that were taken; global random states are as before."""
        self._is_resuming = False
        assert self._begun is not None
        before = capture_rng(cuda=False)
        restore_rng(self._begun, self._generators())
        try:
            batches = _Batches(self.loader.batch_sampler) if self._can_skip_indices() else None
            iterator: Iterator[Any] = iter(self.loader if batches is None else _with_batches(self.loader, batches))
            passed = iterator if batches is None else batches.iterator
            for _ in range(self._taken):
                next(passed, None)
            return iterator
        finally:
            restore_rng(before)

    def _can_skip_indices(self) -> bool:
        loader = self.loader
        return (
            loader.num_workers == 0
            and loader.batch_sampler is not None
            and not isinstance(loader.dataset, IterableDataset)
        )

    def _generators(self) -> dict[str, torch.Generator]:
        sources = {"loader": self.loader, "sampler": self.loader.sampler, "batch_sampler": self.loader.batch_sampler}
        found = {name: getattr(source, "generator", None) for name, source in sources.items()}
        return {name: generator for name, generator in found.items() if generator is not None}

    def _set_generators(self, states: Mapping[str, Any]) -> None:
        before = capture_rng(cuda=False)
        restore_rng(before | {"generators": states}, self._generators())

    def _length(self) -> int | None:
        try:
            return len(self.loader)
        except TypeError:  # of an iterable data set without a length
            return None

    def _sampler_epoch(self) -> dict[str, int]:
        return {"sampler_epoch": self._sampler.epoch} if hasattr(self._sampler, "set_epoch") else {}


class _Batches:
    """Indices of batches whose iterator can be reached: the loader draws its seed before the sampler draws anything."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.iterator: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        self.iterator = iter(self._batches)
        return self.iterator


def _with_batches(loader: Any, batches: _Batches) -> DataLoader[Any]:
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
    )


def _named(generators: Iterable[str]) -> str:
    return f"generators of {' and '.join(sorted(generators))}" if generators else "no generators"
