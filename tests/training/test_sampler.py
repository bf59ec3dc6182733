"""The order of the training data."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effitrans.training.sampler import EpochSampler


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 300),
    group=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    grouped=st.booleans(),
)
def test_every_example_once_an_epoch_and_the_same_when_asked_again(size, group, seed, epoch, grouped):
    lengths = torch.randint(1, 50, (size,), generator=torch.Generator().manual_seed(seed)).tolist() if grouped else None
    sampler = EpochSampler(size, seed, lengths, group)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(size))
    assert len(sampler) == size
    list(EpochSampler(size, seed, lengths, group))  # another epoch in between
    assert list(sampler) == order


def test_epochs_and_seeds_differ():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 3


def test_groups_hold_similar_lengths_and_come_in_random_order():
    lengths = torch.randint(1, 100, (1030,), generator=torch.Generator().manual_seed(0))
    order = torch.tensor(list(EpochSampler(1030, 0, lengths.tolist(), group_size=20)))
    groups = lengths[order[:1020]].view(-1, 20)
    padding = (groups.max(1).values[:, None] - groups).sum() / lengths.sum()
    random_groups = lengths[torch.randperm(1020, generator=torch.Generator().manual_seed(1))].view(-1, 20)
    random_padding = (random_groups.max(1).values[:, None] - random_groups).sum() / lengths.sum()
    assert padding < 0.2 * random_padding
    means = groups.float().mean(1)
    assert (means[1:] < means[:-1]).float().mean() > 0.25
