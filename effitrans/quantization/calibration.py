"""Run a model on calibration data and look at what its linear layers see.

M rows (tokens that are not padding), K input features.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.tasks import calibration_batches

if TYPE_CHECKING:
    from effitrans.quantization.scheme import Scheme

MIN_ROWS = 16
"""Rows below which a layer's statistics are refused."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class CalibrationData:
    """Where calibration examples come from: what the caller of `quantize` passed."""

    data: Any = None
    processor: Any = None

    def batches(self, model: PreTrainedModel, config: "Scheme") -> list[Batch]:
        """Draw `config.calibration_examples` examples with `config.seed`.

        Raises:
            UsageError: they hold NaN or infinite values.
        """
        return list(
            calibration_batches(
                self.data,
                model,
                self.processor,
                limit=config.calibration_examples,
                batch_size=config.batch_size,
                seed=config.seed,
            )
        )


@dataclass
class Trace:
    """In which order and how often the layers of interest run in one forward pass, and how many rows they see."""

    order: list[nn.Module] = field(default_factory=list)
    calls: dict[nn.Module, int] = field(default_factory=lambda: defaultdict(int))
    rows: dict[nn.Module, int] = field(default_factory=lambda: defaultdict(int))
    shared_input: list[list[nn.Module]] = field(default_factory=list)
    """Layers that read the very same tensor, in the order of the model."""


class _Enough(Exception):
    """All layers of interest have run: the rest of the forward pass is not needed."""


def trace(model: PreTrainedModel, layers: Mapping[nn.Module, str], batches: Sequence[Batch]) -> Trace:
    """Run all batches once.

    Args:
        model: the model.
        layers: linear layers of interest, and their names.
        batches: what it is run on.

    Raises:
        UsageError: a layer sees NaN or infinity, or fewer than `MIN_ROWS` rows.
    """
    found = Trace()
    readers: dict[int, list[nn.Module]] = {}
    alive: list[Tensor] = []  # so that no two tensors of the pass have the same id
    first = True

    def see(layer: nn.Module, x: Tensor) -> None:
        if layer not in found.calls:
            found.order.append(layer)
        if first:
            found.calls[layer] += 1
            if layer not in readers.setdefault(id(x), []):
                readers[id(x)].append(layer)
            alive.append(x)

    def count(layer: nn.Module, x_MK: Tensor) -> None:
        if not x_MK.isfinite().all():
            raise UsageError(
                f"the input of {layers[layer]} is NaN or infinite on the calibration data: the model overflows in its "
                "type (try float32) or its weights are damaged; mend that before it is quantized"
            )
        found.rows[layer] += len(x_MK)

    for batch in batches:
        with _hooks(layers, see):
            _run(model, [batch], layers, count, None)
        first = False
    for layer, rows in found.rows.items():
        if rows < MIN_ROWS:
            raise UsageError(
                f"too little calibration data: {layers[layer]} saw {rows} rows, and statistics want at least "
                f"{MIN_ROWS}. Raise calibration_examples or pass more examples (128 are usual)"
            )
    found.shared_input = list(readers.values())
    return found


def watch(
    model: PreTrainedModel,
    layers: Iterable[nn.Module],
    batches: Sequence[Batch],
    look: Callable[[nn.Module, Tensor], None],
    calls: Mapping[nn.Module, int] | None = None,
) -> None:
    """Show `look` the input rows, float [M, K], of each layer in each batch.

    Args:
        model, layers, batches: see `trace`.
        look: called with the layer and its rows, padding left out where the attention mask tells.
        calls: how often each layer runs in a pass; with it, a pass ends as soon as all have run.
    """
    _run(model, batches, list(layers), look, calls)


@torch.no_grad()
def _run(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    layers: Iterable[nn.Module],
    look: Callable[[nn.Module, Tensor], None],
    calls: Mapping[nn.Module, int] | None,
) -> None:
    wanted = list(layers)
    mask: Tensor | None = None
    remaining = 0

    def see(layer: nn.Module, x: Tensor) -> None:
        nonlocal remaining
        if mask is not None and x.shape[:-1] == mask.shape:
            x = x[mask]
        look(layer, x.reshape(-1, x.shape[-1]))
        remaining -= 1
        if calls is not None and remaining == 0:
            raise _Enough

    with _hooks(wanted, see):
        for batch in batches:
            mask = None if model.config.is_encoder_decoder else batch.get("attention_mask")
            mask = mask.bool() if mask is not None and mask.dim() == 2 else None
            remaining = 0 if calls is None else sum(calls[layer] for layer in wanted)
            try:
                model(**batch)
            except _Enough:
                continue


@contextmanager
def _hooks(layers: Iterable[nn.Module], see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(lambda module, args: see(module, args[0])) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_stage(layers: Sequence[nn.Module], names: Mapping[nn.Module, str]) -> list[list[nn.Module]]:
    """Layers of the same numbered block together, in the given order: a stage sees what the earlier ones give."""
    stages: dict[str, list[nn.Module]] = {}
    for layer in layers:
        parts = names[layer].split(".")
        number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        stages.setdefault(".".join(parts[: number + 1]), []).append(layer)
    return list(stages.values())


def main_output(output: Any) -> Tensor:
    """What a model is for: its logits, or what stands in their place (scores of positions, the last hidden state)."""
    for name in ("logits", "start_logits", "last_hidden_state"):
        if (tensor := output.get(name)) is not None:
            return tensor
    return next(t for t in output.to_tuple() if isinstance(t, Tensor) and t.is_floating_point() and t.dim() > 1)


@torch.no_grad()
def relative_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """L2 norm of the difference over that of the second, all tensors together."""
    difference = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return (difference / max(sum(float(b.float().square().sum()) for b in theirs), 1e-30)) ** 0.5
