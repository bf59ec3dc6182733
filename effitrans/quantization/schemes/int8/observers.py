"""Observers: from the values that a layer's input took on calibration data to the range of its int8 grid.

An observer is one small class in this file and one line in `OBSERVERS`. The minimum and maximum of every batch come
from a first pass over the data; where an observer wants more, a histogram of B bins over the whole range comes from a
second pass, so that no value is ever kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import AfterValidator
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.errors import unknown_name
from effitrans.quantization.calibration import Batch, watch

BINS = 2048
LEVELS = 256


@dataclass(frozen=True)
class Observations:
    """What is known about a layer's input."""

    lows: Tensor
    """Minimum of each batch, float32 [batches]."""
    highs: Tensor
    """Maximum of each batch, float32 [batches]."""
    counts_B: Tensor | None = None
    """Histogram from the least to the largest value; None where the observer needs none."""

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value."""
        return float(self.lows.min()), float(self.highs.max())

    @property
    def centres_B(self) -> Tensor:
        """The middle of each bin."""
        low, high = self.range
        return low + (torch.arange(BINS) + 0.5) * ((high - low) / BINS)


class Observer(Protocol):
    """Chooses the range (low, high) of a grid; values outside are clipped to it."""

    needs_histogram: ClassVar[bool]

    def choose(self, seen: Observations) -> tuple[float, float]: ...


class MinMax:
    """All that was seen."""

    needs_histogram: ClassVar[bool] = False

    def choose(self, seen: Observations) -> tuple[float, float]:
        return seen.range


class MovingAverage:
    """Minimum and maximum of the batches, averaged with weights that fall by 0.9 per batch (Krishnamoorthi 2018)."""

    needs_histogram: ClassVar[bool] = False
    keep = 0.9

    def choose(self, seen: Observations) -> tuple[float, float]:
        low, high = float(seen.lows[0]), float(seen.highs[0])
        for batch_low, batch_high in zip(seen.lows[1:].tolist(), seen.highs[1:].tolist(), strict=True):
            low = self.keep * low + (1 - self.keep) * batch_low
            high = self.keep * high + (1 - self.keep) * batch_high
        return low, high


class Percentile:
    """All but the outermost 0.005 % at either end."""

    needs_histogram: ClassVar[bool] = True
    tail = 5e-5

    def choose(self, seen: Observations) -> tuple[float, float]:
        assert seen.counts_B is not None
        share_B = seen.counts_B.double().cumsum(0) / seen.counts_B.sum()
        low, high = seen.range
        width = (high - low) / BINS
        first = int((share_B > self.tail).nonzero()[0])
        last = int((share_B >= 1 - self.tail).nonzero()[0])
        return low + first * width, low + (last + 1) * width


class MeanSquaredError:
    """The range whose grid has the least mean squared error, clipping included."""

    needs_histogram: ClassVar[bool] = True

    def choose(self, seen: Observations) -> tuple[float, float]:
        return _search(seen, _squared_error)


class Entropy:
    """The range whose grid keeps most of the distribution: least Kullback-Leibler divergence (Migacz 2017)."""

    needs_histogram: ClassVar[bool] = True

    def choose(self, seen: Observations) -> tuple[float, float]:
        return _search(seen, _divergence)


def _search(seen: Observations, cost: Callable[[Observations, float, float], float]) -> tuple[float, float]:
    """Shrink the upper and then the lower end, each to the fraction of least cost."""
    assert seen.counts_B is not None
    low, high = (min(seen.range[0], 0.0), max(seen.range[1], 0.0))
    fractions = [1 - step / 64 for step in range(56)]
    high = min((fraction * high for fraction in fractions), key=lambda end: cost(seen, low, end))
    low = min((fraction * low for fraction in fractions), key=lambda end: cost(seen, end, high))
    return low, high


def _squared_error(seen: Observations, low: float, high: float) -> float:
    assert seen.counts_B is not None
    scale = max((high - low) / (LEVELS - 1), 1e-30)
    clipped_B = (seen.centres_B.clamp(low, high) - seen.centres_B).square()
    return float((seen.counts_B.double() * (clipped_B + scale**2 / 12)).sum())


def _divergence(seen: Observations, low: float, high: float) -> float:
    """KL divergence from the histogram to the one that is left when bins that share a grid point share their mass."""
    assert seen.counts_B is not None
    counts_B = seen.counts_B.double()
    if seen.range[0] >= 0:
        counts_B[0] = 0  # after a ReLU half of all values are zeros, which every grid holds exactly
    if counts_B.sum() == 0:
        return 0.0
    scale = max((high - low) / (LEVELS - 1), 1e-30)
    point_B = torch.round((seen.centres_B.clamp(low, high) - low) / scale).long()
    inside_B = (seen.centres_B >= low) & (seen.centres_B <= high)
    occupied_B = (counts_B > 0) & inside_B
    # The reference has its clipped mass at the ends, as the quantized values have it; the model of it does not.
    reference_B = counts_B * inside_B
    ends = inside_B.nonzero().flatten()
    if len(ends) == 0:
        return float("inf")
    reference_B[ends[0]] += counts_B[: ends[0]].sum()
    reference_B[ends[-1]] += counts_B[ends[-1] + 1 :].sum()
    mass = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, point_B, counts_B * inside_B)
    bins = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, point_B, occupied_B.double())
    model_B = (mass / bins.clamp_min(1))[point_B] * occupied_B
    p, q = reference_B / reference_B.sum(), model_B / model_B.sum()
    used = p > 0
    return float((p[used] * (p[used] / q[used].clamp_min(1e-12)).log()).sum())


OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
    "entropy": Entropy,
}
"""Observer name -> class."""


def _known(name: str) -> str:
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    return name


ObserverName = Annotated[str, AfterValidator(_known)]
"""Field of a config: the name of an observer."""


def input_ranges(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    batches: Sequence[Batch],
    factors: Mapping[nn.Module, Tensor],
    observer: str,
) -> dict[nn.Module, tuple[float, float]]:
    """The range of each layer's input, after its factor, that an observer chooses."""
    lows: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    highs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    chooser = OBSERVERS[observer]()

    def scaled(layer: nn.Module, x_MK: Tensor) -> Tensor:
        return x_MK.float() * factors[layer] if layer in factors else x_MK.float()

    def extremes(layer: nn.Module, x_MK: Tensor) -> None:
        low, high = torch.aminmax(scaled(layer, x_MK))
        lows[layer].append(low)
        highs[layer].append(high)

    watch(model, layers, batches, extremes)
    seen = {layer: Observations(torch.stack(lows[layer]).cpu(), torch.stack(highs[layer]).cpu()) for layer in layers}
    if chooser.needs_histogram:
        counts = {layer: torch.zeros(BINS) for layer in layers}

        def count(layer: nn.Module, x_MK: Tensor) -> None:
            counts[layer] += torch.histc(scaled(layer, x_MK), BINS, *seen[layer].range).cpu()

        watch(model, layers, batches, count)
        seen = {layer: Observations(known.lows, known.highs, counts[layer]) for layer, known in seen.items()}
    return {layer: chooser.choose(known) for layer, known in seen.items()}
