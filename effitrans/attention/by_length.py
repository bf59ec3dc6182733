"""One operator for short inputs and another for long ones.

An efficient operator has a cost of its own that exact attention does not have, so below some length exact attention
is both better and faster. The crossover is a number of keys, or is measured: the shortest length from which on the
long side is at least 5 % faster, forward, at the layer's heads and head size in float32 on this machine's
accelerator (its CPU where it has none). Measured numbers are kept in `crossovers.json` in the cache folder, and the
number found is saved with the model, so that a reloaded model computes the same wherever it runs.

Which side runs is a comparison of the number of keys, padding included, with the crossover: nothing depends on data,
and torch.compile makes one graph a side. So the result changes where padding carries a batch over the crossover.

Decoding: the side is chosen anew at each step, by the number of keys so far, and works on the cached keys and
values, all of which are kept; a long side with a constant-size state does not use it. Below the crossover decoding is
exact; from there on new tokens run the long side, on keys and values that earlier layers made of the short one.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from effitrans.attention.full import Full
from effitrans.attention.local import Local
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import FEATURES, AttentionOperator, OperatorConfig, Site, State
from effitrans.errors import UsageError
from effitrans.files import cache_directory, write_text

logger = logging.getLogger(__name__)

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Where the sides are compared; measuring stops at the first length at which the long side clearly wins."""


def _read(value: Any) -> Any:
    """An operator config from its name, or from a mapping with the name under `attention`."""
    if isinstance(value, OperatorConfig):
        return value
    from effitrans.attention.registry import operator_config

    if isinstance(value, str):
        return operator_config(value)
    if isinstance(value, Mapping) and isinstance(value.get("attention"), str):
        return operator_config(value["attention"], {key: part for key, part in value.items() if key != "attention"})
    raise ValueError("expected the name of an operator, or {attention: NAME, ...} with its settings")


def _write(config: OperatorConfig) -> dict[str, Any]:
    return {"attention": config.name, **config.model_dump(mode="json")}


Side = Annotated[
    OperatorConfig,
    pydantic.BeforeValidator(_read),
    pydantic.PlainSerializer(_write),
    pydantic.WithJsonSchema({"type": ["string", "object"]}),
]


class ByLength(OperatorConfig):
    """Full attention for short inputs, an efficient operator for long ones.

    >>> ByLength(long={"attention": "local", "window": 64}, crossover=512).long.window
    64
    """

    name: ClassVar[str] = "by_length"

    short: Side = Full()
    """Operator below the crossover: a name, or `{attention: NAME, ...}` with its settings. Default: full."""
    long: Side = Local()
    """Operator from the crossover on. Default: local."""
    crossover: Annotated[int, pydantic.Field(ge=0)] | Literal["measured"] = "measured"
    """Number of keys from which on the long side runs. Default: measured on this machine when the layer is built."""

    def build(self, site: Site) -> "ByLengthAttention":
        config = self
        if self.crossover == "measured":
            config = self.model_copy(update={"crossover": measured_crossover(self.short, self.long, site)})
        return ByLengthAttention(config, site)


class ByLengthAttention(AttentionOperator):
    """One of two operators by the number of keys; see the module's docstring."""

    honours = frozenset(FEATURES)
    config: ByLength

    def __init__(self, config: ByLength, site: Site) -> None:
        super().__init__(config, site)
        try:
            self.short, self.long = config.short.build(site), config.long.build(site)
        except UsageError as error:
            raise UsageError(f"attention operator 'by_length': {error}") from None
        self.honours = self.short.honours & self.long.honours

    def attend(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        dropout: float = 0.0,
        state: State | None = None,
        **extras: Any,
    ) -> Tensor:
        # what a side does not honour was refused already; not asking again matters for short inputs
        attend = self._side(key_BGSD.shape[2]).attend
        return attend(query_BHLD, key_BGSD, value_BGSD, mask, scale=scale, dropout=dropout, **extras)

    def reference(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        **extras: Any,
    ) -> Tensor:
        return self._side(key_BGSD.shape[2]).reference(query_BHLD, key_BGSD, value_BGSD, mask, scale=scale, **extras)

    def refuse(self, asked: set[str]) -> None:
        super().refuse(asked)
        for side in self.children() if asked else ():
            side.refuse(asked)  # type: ignore[operator]

    def keep_heads(self, query_heads: Any, key_value_heads: Any) -> None:
        super().keep_heads(query_heads, key_value_heads)
        self.short.keep_heads(query_heads, key_value_heads)
        self.long.keep_heads(query_heads, key_value_heads)

    def _side(self, num_keys: int) -> AttentionOperator:
        return self.short if num_keys < self.config.crossover else self.long  # type: ignore[operator]


def measured_crossover(
    short: OperatorConfig, long: OperatorConfig, site: Site, *, device: torch.device | str | None = None
) -> int:
    """The number of keys from which on `long` is at least 5 % faster than `short`, from the cache or measured now.

    Args:
        short, long: the operators.
        site: heads, head size and direction of the layer.
        device: where to measure. Default: the accelerator if there is one, else the CPU.

    Returns:
        A length from 64 to 16,384; 16,385 if the long side is never faster up to there.

    Raises:
        UsageError: one of the operators is not defined for such a layer.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    key = json.dumps([_machine(device), torch.__version__, _write(short), _write(long), site.model_dump()])
    file = cache_directory("attention") / "crossovers.json"
    known = _measured | _known(file)
    if key not in known:
        logger.info("measuring from which length on %s is faster than %s", long.name, short.name)
        _measured[key] = known[key] = _measure(short, long, site, device)
        try:
            write_text(file, json.dumps(known, indent=1))
        except OSError as error:
            logger.warning("the measured crossover cannot be kept for later (%s)", error)
    return known[key]


_measured: dict[str, int] = {}
"""What this process measured, so that all layers of a model agree also where the cache cannot be written."""


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{platform.node()}, {torch.cuda.get_device_name(device)}"
    return f"{platform.node()}, {platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"


def _known(file: Path) -> dict[str, int]:
    """What was measured before; nothing if the file is damaged, since it can be measured again."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("ignoring %s, which cannot be read (%s)", file, error)
        return {}
    return {key: value for key, value in known.items() if isinstance(value, int)} if isinstance(known, dict) else {}


def _measure(short: OperatorConfig, long: OperatorConfig, site: Site, device: torch.device) -> int:
    """Double the length until the long side clearly wins, then halve the last interval in which it began to win."""
    with torch.random.fork_rng(devices=[]):
        sides = [config.build(site).to(device).eval() for config in (short, long)]

    def wins(length: int, margin: float = 0.95) -> bool:
        times = _times(sides, site, length, device)
        return times[1] < margin * times[0]

    below, above = 0, LENGTHS[-1] + 1
    for length in LENGTHS:
        if not wins(length):
            below, above = length, LENGTHS[-1] + 1
            continue
        above = min(above, length)
        if wins(length, margin=0.7):
            break
    if below == 0:
        return LENGTHS[0]
    while above <= LENGTHS[-1] and above > 1.1 * below:
        middle = round((below * above) ** 0.5)
        below, above = (below, middle) if wins(middle) else (middle, above)
    return above


def _times(sides: list[AttentionOperator], site: Site, length: int, device: torch.device) -> list[float]:
    """Seconds of the fastest of some forward passes of each side, taken in turns."""
    generator = torch.Generator().manual_seed(0)
    heads = (site.num_heads, site.num_key_value_heads, site.num_key_value_heads)
    query, key, value = (torch.randn(1, h, length, site.head_dim, generator=generator).to(device) for h in heads)
    best = [float("inf")] * len(sides)
    for turn in range(6):
        for number, side in enumerate(sides):
            mask = AttentionMask(1, length, length, causal=site.causal, device=device)
            start = time.perf_counter()
            with torch.no_grad():
                side(query, key, value, mask, scale=site.head_dim**-0.5)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                best[number] = min(best[number], time.perf_counter() - start)
    return best
