"""Joules that a model takes for an example, read from the counters of the hardware.

Needs the package `zeus` and counters that it may read: NVML's on a GPU, RAPL's on a CPU (Linux; as root by default).
Where either is missing there is no figure; one is never made up from a power rating. The counters belong to the whole
processor, so that whatever else runs on it, and its idle power, is in the figure.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from effitrans.evaluation.timing import Runner

WINDOW_S = 2.0
"""Seconds of a window; NVML and RAPL renew their counters many times in it."""


def energy_monitor(device: torch.device) -> Any:
    """A `zeus.monitor.ZeusMonitor` that reads this device's counters and no other's; None where there is none."""
    try:
        from zeus.monitor import ZeusMonitor  # type: ignore[import-not-found]
    except ImportError:
        return None
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        monitor = ZeusMonitor(gpu_indices=[index], cpu_indices=[])
        return monitor if monitor.gpu_indices else None
    if device.type != "cpu":
        return None
    monitor = ZeusMonitor(gpu_indices=[])
    return monitor if monitor.cpu_indices else None


def joules_an_example(
    monitor: Any, runner: Runner, batch_size: int, *, seconds: float = WINDOW_S, clock: Callable[[], float] = time.time
) -> float | None:
    """Run whole rounds of batches for at least `seconds` and share the energy among their examples.

    Null where the counters stood still, as those of a virtual machine do.
    """
    rounds = 0
    start = clock()
    monitor.begin_window("effitrans")
    while rounds == 0 or clock() - start < seconds:
        for batch in runner.batches:
            runner.run(batch)
        rounds += 1
    measured = monitor.end_window("effitrans")
    joules = sum((measured.gpu_energy or {}).values()) + sum((measured.cpu_energy or {}).values())
    return joules / (rounds * len(runner.batches) * batch_size) if joules > 0 else None
