"""Memory of a forward pass: the weights, and the most that activations take at once.

On CUDA the allocator says it. Elsewhere the storages that operations return are counted while they live, which is
exact for what PyTorch hands out and leaves out buffers inside an operation; so the figure is the same on every run.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel


class _Counter(TorchDispatchMode):
    """Counts the bytes of storages made by operations."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def peak_memory(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], weights: float) -> float:
    """Bytes of the weights and of the activations at their peak, over batches, without gradients.

    Args:
        model: in evaluation mode.
        batches: inputs without labels.
        weights: bytes of the weights.
    """
    device = model.device
    with torch.no_grad():
        if device.type == "cuda":
            model(**batches[0])
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            for batch in batches:
                model(**batch)
            return weights + torch.cuda.max_memory_allocated(device) - before
        most = 0
        for batch in batches:
            counter = _Counter([*model.parameters(), *model.buffers(), *batch.values()])
            with counter:
                output = model(**batch)
            most = max(most, counter.peak)
            del output
    return weights + most
