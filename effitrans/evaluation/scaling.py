"""Time and memory of attention operators against length, measured side by side on this machine.

Time: the operators take turns at every length, the median over rounds is kept. Memory: how far one pass raises the
peak of a fresh process that holds the inputs already. Inference is a forward pass without gradients, training a forward
and a backward pass to queries, keys and values. An exponent is the slope of a line through the logarithms at the
longer half of the lengths, where fixed costs matter least: 1 is linear, 2 quadratic.

Shapes: H query heads, G key/value heads, L positions, D head dimension.
"""

import logging
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effitrans.attention import AttentionMask, AttentionOperator, ByLength, Linformer, OperatorConfig, Site
from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.evaluation.timing import Effort, Runner, interleave

logger = logging.getLogger(__name__)

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
PASSES = ("inference", "training")
_STATUS = Path("/proc/self/status")


class LengthCost(Config):
    """One operator at one length; None where it was not measured."""

    variant: str
    """Name of the operator in the comparison."""
    length: int
    """L."""
    inference_ms: float | None = None
    """Milliseconds of a forward pass, the median."""
    training_ms: float | None = None
    """Milliseconds of a forward and a backward pass, the median."""
    inference_bytes: int | None = None
    """Bytes by which a forward pass raises the peak."""
    training_bytes: int | None = None
    """Bytes by which a forward and a backward pass raise it."""


def measure_scaling(
    operators: Mapping[str, OperatorConfig],
    site: Site,
    lengths: Sequence[int] = LENGTHS,
    *,
    repeats: int = 3,
    memory: bool = True,
) -> list[LengthCost]:
    """Time and peak memory of operators at several lengths, batch 1, float32, on the CPU.

    Args:
        operators: name -> config.
        site: heads, head size and direction.
        lengths: numbers of positions.
        repeats: rounds, after one that is not counted.
        memory: whether to measure memory, which needs Linux.

    Returns:
        A cell an operator and length. An operator whose memory would not fit into half of what is free is not run at
        that length, and its cell is empty.

    Raises:
        RuntimeError: called from a script that does not keep its work under `if __name__ == "__main__":`.
    """
    cells: list[LengthCost] = []
    last: dict[str, tuple[int, int]] = dict.fromkeys(operators, (0, 0))  # bytes of the last pass, at which length
    for length in sorted(lengths):
        logger.info("measuring %d operators at length %d", len(operators), length)
        free = _free_bytes()
        fitting = {
            name: _for_length(config, max(lengths))
            for name, config in operators.items()
            # at worst quadratic in the length
            if last[name][1] == 0 or last[name][0] * (length / last[name][1]) ** 2 < free / 2
        }
        found: dict[str, dict[str, Any]] = {name: {} for name in operators}
        for name, config in list(fitting.items()):
            for training in (False, True) if memory and _STATUS.is_file() else ():
                found[name][f"{PASSES[training]}_bytes"] = bytes_ = _peak(config, site, length, training)
                if bytes_ is None:
                    del fitting[name]
                    last[name] = (sys.maxsize, length)  # nor is it run at longer ones
                    break
                last[name] = (bytes_, length)
        for training in (False, True):
            for name, milliseconds in _times(fitting, site, length, training, repeats).items():
                found[name][f"{PASSES[training]}_ms"] = milliseconds
        cells += [LengthCost(variant=name, length=length, **values) for name, values in found.items()]
    return cells


def exponents(cells: Sequence[LengthCost]) -> dict[str, dict[str, float | None]]:
    """Operator -> quantity (`inference_ms`, ...) -> growth exponent; None with fewer than two lengths."""
    lengths = sorted({cell.length for cell in cells})
    longer = lengths[(len(lengths) - 1) // 2 :]
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(cell.variant for cell in cells):
        mine = [cell for cell in cells if cell.variant == name and cell.length in longer]
        found[name] = {quantity: _slope(mine, quantity) for quantity in QUANTITIES}
    return found


QUANTITIES = tuple(f"{one}_{unit}" for unit in ("ms", "bytes") for one in PASSES)


def _slope(cells: Sequence[LengthCost], quantity: str) -> float | None:
    points = [(cell.length, value) for cell in cells if (value := getattr(cell, quantity))]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def _for_length(config: OperatorConfig, longest: int) -> OperatorConfig:
    """The operator, or where it has a longest input, and for that reason alone, the one that takes `longest`."""
    if isinstance(config, Linformer) and config.max_length < longest:
        return config.model_copy(update={"max_length": longest})
    if isinstance(config, ByLength):
        return config.model_copy(
            update={side: _for_length(getattr(config, side), longest) for side in ("short", "long")}
        )
    return config


def _times(
    operators: Mapping[str, OperatorConfig], site: Site, length: int, training: bool, repeats: int
) -> dict[str, float]:
    if not operators:
        return {}
    batch = _inputs(site, length, training)
    runners = {
        name: Runner(partial(_run, config.build(site), site=site, training=training), [batch])
        for name, config in operators.items()
    }
    samples = interleave(runners, Effort(warmup=1, min_repeats=repeats, min_seconds=0, max_seconds=300))
    return {name: 1000 * float(np.median(seconds)) for name, seconds in samples.items()}


def _inputs(site: Site, length: int, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Heads [1, H or G, L, D] as a projection leaves them."""
    generator = torch.Generator().manual_seed(0)
    heads = (site.num_heads, site.num_key_value_heads, site.num_key_value_heads)
    query, key, value = (
        torch.randn(1, length, h, site.head_dim, generator=generator).transpose(1, 2).requires_grad_(training)
        for h in heads
    )
    return query, key, value


def _run(operator: AttentionOperator, inputs: tuple[Tensor, Tensor, Tensor], site: Site, training: bool) -> None:
    length = inputs[0].shape[2]
    mask = AttentionMask(1, length, length, causal=site.causal)
    with torch.set_grad_enabled(training):
        out = operator(*inputs, mask, scale=site.head_dim**-0.5)
        if training:
            torch.autograd.grad(out.sum(), inputs)


def _peak(config: OperatorConfig, site: Site, length: int, training: bool) -> int | None:
    """Bytes by which one pass raises the peak of a process that has done nothing else; None if that was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, config, site, length, training, torch.get_num_threads())
    process = context.Process(target=_send_peak, args=arguments)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode and process.exitcode > 0:  # not killed
            raise RuntimeError(
                "the process that measures memory could not start. A script that measures operators keeps its work "
                'under `if __name__ == "__main__":`, as that process imports it'
            ) from None
        logger.warning("%s at length %d ran out of memory or was killed: left empty", config.name, length)
        return None
    finally:
        process.join()
    if isinstance(answer, UsageError):  # longer than it takes
        logger.warning("%s at length %d left empty: %s", config.name, length, answer)
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _send_peak(sender: Any, config: OperatorConfig, site: Site, length: int, training: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        sender.send(_own_peak(config, site, length, training))
    except Exception as error:  # it is raised where it was asked for
        sender.send(error)


def _own_peak(config: OperatorConfig, site: Site, length: int, training: bool) -> int:
    operator = config.build(site)
    # what the first call of a process sets up is not part of a pass
    _run(operator, _inputs(site, 64, training), site, training)
    inputs = _inputs(site, length, training)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_bytes("VmRSS")
    _run(operator, inputs, site, training)
    return max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(field: str, file: Path = _STATUS) -> int:
    lines = file.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _free_bytes() -> float:
    file = Path("/proc/meminfo")
    return _status_bytes("MemAvailable", file) if file.is_file() else float("inf")
