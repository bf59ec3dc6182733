"""The order in which training examples are seen: a function of (seed, epoch) and nothing else.

Trainer's own length-grouped sampler draws from the global random state, which a resumed run does not have
where the first one had it. This one can be asked for any epoch at any time, so skipping into the middle of an
epoch finds the same batches.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_POOL = 50  # optimizer steps whose examples are sorted together; more saves padding, fewer mixes better


class EpochSampler(Sampler[int]):
    """Yields the indices 0..n-1 in a random order, or in one where each group of `group_size` is of similar length.

    Args:
        size: number of examples.
        seed: of the order.
        lengths: length of each example; None gives a plain random order.
        group_size: examples of one optimizer step over all processes. Groups are built from pools of 50 groups
            (a quarter of the data where that is less), sorted by length, and come in random order. An incomplete
            group comes last, so that groups and batches stay aligned.
    """

    def __init__(self, size: int, seed: int, lengths: Sequence[int] | None = None, group_size: int = 1) -> None:
        self.size, self.seed, self.group_size = size, seed, group_size
        self.lengths = None if lengths is None else torch.as_tensor(list(lengths))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        if self.lengths is None:
            yield from order.tolist()
            return
        num_groups = self.size // self.group_size
        pool = self.group_size * max(1, min(_POOL, num_groups // 4))
        by_length = torch.cat([part[torch.argsort(self.lengths[part], stable=True)] for part in order.split(pool)])
        groups = by_length[: num_groups * self.group_size].view(num_groups, self.group_size)
        shuffled = groups[torch.randperm(num_groups, generator=generator)]
        yield from shuffled.flatten().tolist()
        yield from by_length[num_groups * self.group_size :].tolist()
