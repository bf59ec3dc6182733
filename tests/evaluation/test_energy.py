"""Joules come from the hardware's counters (here a stub of `zeus`), or there are none."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from effitrans.evaluation import Cost, evaluate
from effitrans.evaluation.energy import energy_monitor, joules_an_example
from effitrans.evaluation.timing import Runner

QUICK = Cost(batches=(1, 2), lengths=("data", 8), min_repeats=2, min_seconds=0.0, warmup=1, threads=1, memory=False)
CPU = torch.device("cpu")


class Monitor:
    """Counts what is run between the two ends of a window: 6 J a call in each of two packages."""

    cpu_indices = (0, 1)
    calls = 0

    def __init__(self, gpu_indices=None, cpu_indices=None):
        assert gpu_indices == [], "a CPU model is not charged for a GPU"
        self.gpu_indices = gpu_indices

    def begin_window(self, key):
        Monitor.calls = 0

    def end_window(self, key):
        return SimpleNamespace(gpu_energy={}, cpu_energy=dict.fromkeys(self.cpu_indices, 6.0 * Monitor.calls))


@pytest.fixture
def zeus(monkeypatch):
    """A stub of the package; its monitor can be replaced."""
    module = ModuleType("zeus.monitor")
    module.ZeusMonitor = type("ZeusMonitor", (Monitor,), {})
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", module)
    return module


def test_the_energy_is_shared_among_the_examples(zeus):
    def run(batch):
        Monitor.calls += 1

    times = iter(range(100))
    joules = joules_an_example(
        energy_monitor(CPU), Runner(run, ["a", "b", "c"]), batch_size=4, seconds=5.0, clock=lambda: next(times)
    )
    assert Monitor.calls % 3 == 0
    assert Monitor.calls >= 12, "rounds until the window is long enough"
    assert joules == 2 * 6.0 / 4


def test_counters_that_stand_still_give_no_figure(zeus):
    zeus.ZeusMonitor.end_window = lambda self, key: SimpleNamespace(gpu_energy={}, cpu_energy={0: 0.0})
    assert joules_an_example(energy_monitor(CPU), Runner(lambda batch: None, [1]), 1, seconds=0.0) is None


def test_hardware_that_cannot_be_read_gives_no_monitor(zeus):
    zeus.ZeusMonitor.cpu_indices = ()
    assert energy_monitor(CPU) is None
    assert energy_monitor(torch.device("meta")) is None


def test_no_package_gives_no_monitor(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    assert energy_monitor(CPU) is None


def test_the_record_names_the_shape_of_its_joules(zeus, tiny_teacher, tiny_task, monkeypatch):
    monkeypatch.setitem(joules_an_example.__kwdefaults__, "seconds", 0.0)
    zeus.ZeusMonitor.end_window = lambda self, key: SimpleNamespace(gpu_energy={}, cpu_energy={0: 8.0})
    costs = evaluate(tiny_teacher, tiny_task, cost=QUICK).cost
    assert costs.energy_shape == (2, "data")
    assert costs.energy_j == 8.0 / 16, "eight batches of two"


def test_without_counters_the_field_is_null_and_nothing_is_said(tiny_teacher, tiny_task, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus", None)
    record = evaluate(tiny_teacher, tiny_task, cost=QUICK)
    assert record.cost.energy_j is None
    assert record.cost.energy_shape is None
    assert not any("energy" in note or "joule" in note.lower() for note in record.notes)
