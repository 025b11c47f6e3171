"""A loader that was stopped anywhere gives the batches that would have come."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from arc_halo.errors import StateMismatch
from arc_halo.integrations.torch_training import ResumableLoader


class Noisy(torch.utils.data.Dataset):
    """Samples that draw as augmentations do."""

    def __init__(self):
        self.loaded = 0

    def __len__(self):
        return 23

    def __getitem__(self, index):
        self.loaded += 1
        return index + torch.rand(()).item() / 2


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.rand(23).tolist())


def generator():
    return torch.Generator().manual_seed(5)


def sampler(**options):
    return torch.utils.data.RandomSampler(Noisy(), generator=generator(), **options)


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "own generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=generator()),
    "own sampler": lambda: DataLoader(Noisy(), 4, sampler=sampler()),
    "more than there are": lambda: DataLoader(Noisy(), 4, sampler=sampler(num_samples=30)),
    "in order": lambda: DataLoader(Noisy(), 4, drop_last=True),
    "one by one": lambda: DataLoader(Noisy(), batch_size=None),
    "of a rank": lambda: DataLoader(Noisy(), 4, sampler=DistributedSampler(Noisy(), 2, 1, seed=3)),
    "iterable": lambda: DataLoader(Endless(), 4),
}  # fmt: skip


def train(loader, epochs, stop=None):
    """Batches with what else a step draws; with the state after ``stop`` of them."""
    taken, state = [], None
    for epoch in range(loader.epoch, epochs):
        if hasattr(loader.loader.sampler, "set_epoch") and not loader._is_resuming:
            loader.loader.sampler.set_epoch(epoch)
        for batch in loader:
            taken.append((torch.as_tensor(batch).tolist(), torch.rand(()).item()))
            if len(taken) == stop:
                state = copy.deepcopy(loader.state_dict()), torch.get_rng_state()
    return taken, state


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("stop", [1, 5, 6, 8])
def test_the_same_batches_come(make, stop):
    torch.manual_seed(0)
    straight, (state, random) = train(ResumableLoader(make()), 3, stop)
    torch.manual_seed(77)
    loader = ResumableLoader(make())
    loader.load_state_dict(state)
    torch.set_rng_state(random)
    assert train(loader, 3)[0] == straight[stop:]


def test_between_epochs_the_generator_goes_on():
    loader = ResumableLoader(LOADERS["own generator"]())
    first = [batch.tolist() for batch in loader]
    state = loader.state_dict()
    other = ResumableLoader(LOADERS["own generator"]())
    other.load_state_dict(state)
    assert (other.epoch, len(other)) == (1, 6)
    assert [int(each) for batch in other for each in batch] != [int(each) for batch in first for each in batch]


def test_batches_that_were_taken_are_not_loaded_again():
    loader = ResumableLoader(LOADERS["shuffled"]())
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    other = ResumableLoader(LOADERS["shuffled"]())
    other.load_state_dict(loader.state_dict())
    assert len(list(other)) == 1
    assert other.loader.dataset.loaded == 3


def test_workers_draw_what_they_drew():
    def make():
        return ResumableLoader(DataLoader(Noisy(), 4, shuffle=True, num_workers=1, multiprocessing_context="fork"))

    torch.manual_seed(0)
    straight, (state, random) = train(make(), 1, 4)
    loader = make()
    loader.load_state_dict(state)
    torch.set_rng_state(random)
    assert train(loader, 1)[0] == straight[4:]


def test_another_loader_is_refused():
    state = ResumableLoader(DataLoader(Noisy(), 4)).state_dict()
    with pytest.raises(StateMismatch, match="gives 12 batches in an epoch and gave 6"):
        ResumableLoader(DataLoader(Noisy(), 2)).load_state_dict(state)
    with pytest.raises(StateMismatch, match="draws from generators of loader and sampler and drew from no generators"):
        ResumableLoader(LOADERS["own generator"]()).load_state_dict(state)
