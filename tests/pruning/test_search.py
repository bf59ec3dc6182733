"""The search for a structure inside a budget: what it promises, on models so small that time is made up.

Where a latency is needed the ratio is a function of the structure, since tiny models have no steady one; that real
times land where they should is a slow test.
"""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

from effitrans import checkpoint
from effitrans.architectures import adapter
from effitrans.errors import UsageError
from effitrans.pruning import UNITS, Search, prune
from effitrans.pruning.search import cost, search
from effitrans.pruning.search.cost import Table, counted
from effitrans.pruning.search.evolution import Evolution, pareto
from effitrans.pruning.search.memory import peak_memory
from effitrans.pruning.search.space import Space
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites
from tests.architectures.families import FAMILIES, Family, core_first, logits

BY_NAME = {family.name: family for family in FAMILIES}
SMALL = {"evaluations": 10, "population": 4, "widths": 5, "calibration_examples": 3, "scored_examples": 3}
QUICK = SMALL | {"length": 16}


def data(family: Family) -> list[dict[str, torch.Tensor]]:
    return [family.inputs(), family.inputs()]


def space_of(model: transformers.PreTrainedModel, **settings) -> Space:
    layers = adapter(model).layers
    generator = torch.Generator().manual_seed(0)
    sites = [*head_sites(layers), *ffn_sites(layers)]
    scores = {site.name: torch.rand(site.units, generator=generator) for site in sites}
    return Space(model, scores, **({"comparable": True, "widths": 5, "multiple_of": 8, "whole": True} | settings))


def made_up_time(model, original, batches, repeats) -> float:
    """A time that parts do not quite add up to."""
    share = counted(model)["parameters"] / counted(original)["parameters"]
    return 0.1 + 0.9 * share**1.3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measured_ratio", made_up_time)
    monkeypatch.setattr(search, "fresh_ratio", made_up_time)


@pytest.mark.parametrize("family", core_first())
def test_parameters_of_any_structure_are_known(family: Family) -> None:
    model = family.model()
    space = space_of(model)
    table = Table.measure(space, ("parameters", "bytes"), [], 2, {})
    generator = random.Random(3)
    checked = 0
    for _ in range(8):
        structure = tuple(generator.randrange(len(place.widths)) for place in space.places)
        if not space.allowed(structure):
            continue
        built = space.build(structure)
        if not space.whole(structure).lost[UNITS["layers"]]:
            expected = counted(built)["parameters"] / counted(model)["parameters"]
            assert table.of(structure)["parameters"] == pytest.approx(expected, rel=1e-6)
            checked += 1
        widths = space.widths(structure)
        left = [layer.feed_forward for layer in adapter(built).layers]
        assert sum(network.width for network in left) == sum(
            width for name, width in widths.items() if any(name == path for path in family.feed_forward)
        )
        assert torch.isfinite(logits(built, family.inputs())).all()
    assert checked
    assert counted(space.build(space.full)) == counted(model)


@pytest.mark.parametrize("family", core_first())
def test_parameters_are_met(family: Family, tmp_path: Path) -> None:
    model = family.model()
    before = model.num_parameters()
    pruned = prune(model, Search(parameters=0.75, **SMALL), data(family))
    assert model.num_parameters() == before
    assert 0.65 * before < pruned.num_parameters() <= 0.75 * before
    summary = checkpoint.history(pruned)[-1]["summary"]
    assert summary["parameters_after"] == pruned.num_parameters()
    assert summary["structures"] >= 5
    assert summary["trajectory"] == sorted(summary["trajectory"], reverse=True)
    losses = [point["loss"] for point in summary["front"]]
    assert losses == sorted(losses, reverse=True)
    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, family.inputs()), logits(pruned, family.inputs()))
    loaded(**family.inputs()).loss.backward()


def test_latency_is_met_as_measured(clock: None) -> None:
    family = BY_NAME["bert"]
    settings = QUICK | {"widths": 9, "multiple_of": 2}
    pruned = prune(family.model(), Search(latency=0.7, **settings), data(family))
    measured = made_up_time(pruned, family.model(), [], 0)
    assert measured <= 0.7 * 1.03
    assert measured > 0.7 * 0.9
    summary = checkpoint.history(pruned)[-1]["summary"]
    assert summary["costs"]["latency"] == pytest.approx(measured)


def test_several_limits_at_once(clock: None) -> None:
    family = BY_NAME["gpt2"]
    pruned = prune(family.model(), Search(latency=0.8, memory=0.8, parameters=0.7, bytes=0.72, **QUICK), data(family))
    assert checkpoint.history(pruned)[-1]["summary"]["costs"]["memory"] <= 0.8 * 1.03
    assert made_up_time(pruned, family.model(), [], 0) <= 0.8 * 1.03
    assert pruned.num_parameters() <= 0.7 * family.model().num_parameters()


def test_memory_is_what_tensors_take() -> None:
    class Two(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = torch.cat([x] * 10)  # 4,000 bytes beside nothing else
            small = wide.sum(0)  # 400
            del wide
            return torch.cat([small] * 2)  # 800

    x = torch.zeros(10, 10)
    assert peak_memory(Two(), [{"x": x}], 7.0) == 7 + 4000 + 40  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_memory_is_met_as_measured(name: str) -> None:
    family = BY_NAME[name]
    settings = QUICK | {"widths": 9, "multiple_of": 2, "batch": 8}
    pruned = prune(family.model(), Search(memory=0.8, **settings), data(family))
    summary = checkpoint.history(pruned)[-1]["summary"]
    ids = torch.randint(5, 50, (8, 16))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taken = [peak_memory(m.eval(), [batch], counted(m)["bytes"]) for m in (pruned, family.model())]
    assert summary["costs"]["memory"] == pytest.approx(taken[0] / taken[1], rel=0.02)
    assert 0.6 < taken[0] / taken[1] <= 0.8 * 1.03
    assert "latency" not in summary["costs"]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_of_optuna(sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed (extra search)")
    family = BY_NAME["bert"]
    before = family.model().num_parameters()
    config = Search(parameters=0.75, sampler=sampler, **(SMALL | {"evaluations": 14}))
    whole = search.search(family.model(), config, data(family), storage=tmp_path / "whole.json")
    assert whole.num_parameters() <= 0.75 * before
    summary = checkpoint.history(whole)[-1]["summary"]
    assert summary["structures"] >= 8
    assert summary["loss"] == min(point["loss"] for point in summary["front"])
    journal = (tmp_path / "whole.optuna-0.log").read_text()
    assert len(journal.splitlines()) > 20
    losses = search._Job.loss
    measured: list[int] = []

    def dies(self, structure):
        measured.append(1)
        if len(measured) == 9:
            raise KeyboardInterrupt
        return losses(self, structure)

    monkeypatch.setattr(search._Job, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        search.search(family.model(), config, data(family), storage=tmp_path / "killed.json")
    resumed = search.search(family.model(), config, data(family), storage=tmp_path / "killed.json")
    assert torch.equal(logits(resumed, family.inputs()), logits(whole, family.inputs()))
    assert (tmp_path / "killed.json").read_text() == (tmp_path / "whole.json").read_text()


def test_without_optuna_its_samplers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs optuna, .* pip install 'effitrans\[search\]'"):
        prune(BY_NAME["bert"].model(), Search(parameters=0.5, sampler="tpe"), [])


def test_the_table_is_corrected_before_structures_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    family = BY_NAME["bert"]
    off: list[float] = []
    best = search._Job._best

    def overlapping(model, original, batches, repeats) -> float:
        """Each part saves what the others would have saved as well."""
        return 0.5 + 0.5 * (counted(model)["parameters"] / counted(original)["parameters"]) ** 8

    def watched(self, table, limits, *rest):
        structure = best(self, table, limits, *rest)
        whole = overlapping(self.space.build(structure), self.model, [], 1)
        off.append(whole / table.of(structure)["latency"] - 1)
        return structure

    monkeypatch.setattr(cost, "measured_ratio", overlapping)
    monkeypatch.setattr(search, "fresh_ratio", overlapping)
    monkeypatch.setattr(search._Job, "_best", watched)
    prune(family.model(), Search(latency=0.55, **QUICK), data(family))
    monkeypatch.setattr(search._Job, "_calibrate", lambda *_: None)
    corrected = off.pop(0)
    del off[:]
    prune(family.model(), Search(latency=0.55, **QUICK), data(family))
    assert abs(corrected) < 0.5 * abs(off[0])


def test_evolution_beats_uniform_where_places_differ() -> None:
    space = space_of(BY_NAME["bert"].model(), widths=9)
    table = Table.measure(space, ("parameters",), [], 2, {})

    def loss(structure) -> float:
        return sum(
            (1 + 9 * (index % 2)) * (1 - place.widths[choice] / place.units)
            for index, (place, choice) in enumerate(zip(space.places, structure, strict=True))
        )

    evolution = Evolution(space, table, {"parameters": 0.7}, loss, population=6, seed=0)
    best = evolution.run(60)
    assert evolution.fits(best)
    assert loss(best) < 0.7 * loss(evolution.uniform())
    assert all(evolution.fits(structure) for structure in evolution.losses)
    again = Evolution(space, table, {"parameters": 0.7}, loss, population=6, seed=0)
    assert again.run(60) == best
    assert again.losses == evolution.losses


def test_a_killed_search_goes_on(tmp_path: Path, clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    family = BY_NAME["distilbert"]
    config = Search(latency=0.8, **QUICK)
    undisturbed = search.search(family.model(), config, data(family), storage=tmp_path / "whole.json")
    built: list[int] = []
    build = Space.build

    def dies(self, structure):
        built.append(1)
        if len(built) == 16:
            raise KeyboardInterrupt
        return build(self, structure)

    monkeypatch.setattr(Space, "build", dies)
    with pytest.raises(KeyboardInterrupt):
        search.search(family.model(), config, data(family), storage=tmp_path / "killed.json")
    kept = json.loads((tmp_path / "killed.json").read_text())
    measured = sum(len(row) for row in kept["costs"].values()) + len(kept["losses"]) + len(kept["measured"])
    assert measured == 15
    first = len(built)
    resumed = search.search(family.model(), config, data(family), storage=tmp_path / "killed.json")
    assert torch.equal(logits(resumed, family.inputs()), logits(undisturbed, family.inputs()))
    assert (tmp_path / "killed.json").read_text() == (tmp_path / "whole.json").read_text()
    repeated = len(built) - first
    assert repeated < first + len(json.loads((tmp_path / "whole.json").read_text())["losses"])
    with pytest.raises(UsageError, match="of another model, data set or setting"):
        search.search(BY_NAME["bert"].model(), config, data(BY_NAME["bert"]), storage=tmp_path / "killed.json")


def test_a_budget_that_cannot_be_met_names_what_can(clock: None) -> None:
    family = BY_NAME["bert"]
    with pytest.raises(UsageError, match=r"parameters 0\.01 cannot be reached: the smallest .* has 0\.\d+") as raised:
        prune(family.model(), Search(parameters=0.01, **SMALL), data(family))
    smallest = float(str(raised.value).split(" has ")[1].split()[0])
    pruned = prune(family.model(), Search(parameters=smallest + 1e-3, **SMALL), data(family))
    assert pruned.num_parameters() / family.model().num_parameters() <= smallest + 1e-3
    with pytest.raises(UsageError, match=r"latency 0\.01 cannot be reached"):
        prune(family.model(), Search(latency=0.01, **QUICK), data(family))


def test_without_whole_blocks_something_stays_everywhere() -> None:
    family = BY_NAME["llama"]
    pruned = prune(family.model(), Search(parameters=0.6, whole=False, **SMALL), data(family))
    assert all(layer.attention and layer.feed_forward.width for layer in adapter(pruned).layers)
    assert len(adapter(pruned).layers) == 3


def test_min_quality_finds_a_faster_model_of_that_quality(clock: None, tiny_teacher: Path, tiny_task: Path) -> None:
    from effitrans.evaluation import evaluate
    from effitrans.tasks import load_task
    from effitrans.tasks.loading import load_for_task

    task = load_task(tiny_task)
    loaded = load_for_task(tiny_teacher, task)
    config = Search(min_quality=0.9, **(QUICK | {"length": 16, "calibration_examples": 16, "scored_examples": 16}))
    pruned = prune(loaded.model, config, task, processor=loaded.processor)
    scores = [
        evaluate(m, task, split="validation", processor=loaded.processor, cost=None).quality["accuracy"].value
        for m in (loaded.model, pruned)
    ]
    assert scores[1] >= 0.9 * scores[0]
    assert pruned.num_parameters() < loaded.model.num_parameters()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to search for"),
        ({"latency": 1.2}, "latency"),
        ({"latency": 0.5, "min_quality": 0.99}, "leave latency out"),
        ({"latency": 0.5, "method": "tailor"}, "did you mean 'taylor'"),
        ({"latency": 0.5, "length": 0}, "length"),
    ],
)
def test_config_is_checked(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Search.parse(values)


def test_refused() -> None:
    family = BY_NAME["bert"]
    with pytest.raises(UsageError, match="got none: give a task"):
        prune(family.model(), Search(parameters=0.5), None)
    with pytest.raises(UsageError, match="is no limit"):
        prune(family.model(), Search(parameters=10**9), data(family))
    with pytest.raises(UsageError, match="at most 40 tokens"):
        prune(family.model(), Search(latency=0.5, **(QUICK | {"length": 128})), data(family))
    with pytest.raises(UsageError, match="returns a copy"):
        prune(family.model(), Search(parameters=0.5), data(family), inplace=True)


def test_pareto_front() -> None:
    points = {(0,): (1.0, 0.1), (1,): (0.5, 0.5), (2,): (0.7, 0.6), (3,): (0.6, 0.3)}
    assert pareto(points) == [(1,), (3,), (0,)]


@pytest.mark.slow
def test_a_real_latency_lands_near_its_target() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, intermediate_size=768
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 200, (16, 64))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(16) % 2}] * 2
    settings = Search(latency=0.5, batch=16, length=64, evaluations=16, widths=8, scored_examples=16, repeats=9)
    pruned = prune(model, settings, batches)
    timed = [{name: tensor for name, tensor in batches[0].items() if name != "labels"}]
    assert cost.fresh_ratio(pruned, model, timed, 20) == pytest.approx(0.5, rel=0.1)
