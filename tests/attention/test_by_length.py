"""The choice between two operators by length: where it falls, how it is measured, and what is saved of it."""

import json

import pytest
import torch
import transformers

from effitrans import checkpoint
from effitrans.attention import ByLength, Full, Linear, Local, Site, by_length, measured_crossover, swap_attention
from effitrans.errors import UsageError
from effitrans.recipes.steps import VERBS
from tests.architectures.families import FAMILIES
from tests.attention.cases import SCALE, Problem, build

SITE = Site(num_heads=2, num_key_value_heads=1, head_dim=8, causal=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("EFFITRANS_CACHE", raising=False)
    monkeypatch.setattr(by_length, "_measured", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "effitrans" / "attention" / "crossovers.json"


@pytest.fixture
def clock(monkeypatch):
    """Times that grow with the square of the length on the short side, and in proportion to it on the long side."""
    lengths = []

    def times(sides, site, length, device):
        lengths.append(length)
        return [length**2 / 700, length]

    monkeypatch.setattr(by_length, "_times", times)
    return lengths


@pytest.mark.parametrize(("length", "side"), [(19, Full()), (20, Local(window=3)), (21, Local(window=3))], ids=str)
def test_the_side_changes_at_the_crossover(length, side):
    problem = Problem(length=length, causal=True)
    inputs = problem.inputs()
    got = build(ByLength(crossover=20, long=Local(window=3)), problem)(*inputs, problem.mask(), scale=SCALE)
    torch.testing.assert_close(got, build(side, problem)(*inputs, problem.mask(), scale=SCALE), rtol=0, atol=0)


def test_it_is_measured_once_and_kept(cache, clock):
    crossover = measured_crossover(Full(), Local(), SITE, device="cpu")
    # the long side is faster beyond 700 keys, and by 5 % beyond 737
    assert 737 <= crossover <= 1.1 * 737
    assert max(clock) <= 2048
    measured = len(clock)
    assert list(json.loads(cache.read_text()).values()) == [crossover]
    assert measured_crossover(Full(), Local(), SITE, device="cpu") == crossover
    assert len(clock) == measured
    measured_crossover(Full(), Local(window=5), SITE, device="cpu")
    measured_crossover(Full(), Local(), SITE.model_copy(update={"head_dim": 16}), device="cpu")
    assert len(json.loads(cache.read_text())) == 3


def test_a_kept_number_is_used_and_a_damaged_file_is_not(cache, clock):
    crossover = measured_crossover(Full(), Local(), SITE, device="cpu")
    key = next(iter(json.loads(cache.read_text())))
    cache.write_text(json.dumps({key: 77}))
    assert measured_crossover(Full(), Local(), SITE, device="cpu") == 77
    cache.write_text("{damaged")
    by_length._measured.clear()
    measured = len(clock)
    assert measured_crossover(Full(), Local(), SITE, device="cpu") == crossover
    assert len(clock) > measured


def test_a_folder_that_cannot_be_written_does_not_stop_it(cache, clock):
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder should be")
    assert measured_crossover(Full(), Local(), SITE, device="cpu") > 700
    measured = len(clock)
    assert measured_crossover(Full(), Local(), SITE, device="cpu") > 700
    assert len(clock) == measured


@pytest.mark.parametrize(("short", "long", "expected"), [(1, 2, 16385), (2, 1, 64)], ids=["never", "always"])
def test_the_ends_of_the_range(cache, monkeypatch, short, long, expected):
    monkeypatch.setattr(by_length, "_times", lambda *args: [short, long])
    assert measured_crossover(Full(), Local(), SITE, device="cpu") == expected


def test_real_times_are_measured_without_touching_the_global_seed():
    sides = [config.build(SITE).eval() for config in (Full(), Linear(feature_map="hedgehog"))]
    assert all(0 < seconds < 1 for seconds in by_length._times(sides, SITE, 64, torch.device("cpu")))


def test_the_measured_number_is_saved_with_the_model(cache, clock, tmp_path):
    family = next(family for family in FAMILIES if family.name == "llama")
    config = ByLength(long=Linear(feature_map="hedgehog"))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    measured_crossover(config.short, config.long, SITE, device="cpu")
    assert torch.equal(torch.rand(1), expected)
    model = swap_attention(family.model(), config)
    operator = model.model.layers[0].self_attn.attention_operator
    assert isinstance(operator.config.crossover, int)
    assert checkpoint.history(model)[-1]["config"]["crossover"] == "measured"
    model.save_pretrained(tmp_path / "model")
    cache.unlink()
    measured = len(clock)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    again = reloaded.model.layers[0].self_attn.attention_operator
    assert again.config == operator.config
    assert len(clock) == measured
    for name, parameter in operator.named_parameters():
        assert name.startswith("long.")
        assert torch.equal(again.get_parameter(name), parameter)


def test_sides_are_named_in_a_recipe():
    step = VERBS["swap"].parse({"attention": "by_length", "long": {"attention": "local", "window": 9}}, "swap")
    assert step.options == ByLength(long=Local(window=9))
    assert VERBS["swap"].parse(
        {"attention": "by_length", "long": "linear", "crossover": 5}, "swap"
    ).options == ByLength(long=Linear(), crossover=5)
    assert ByLength.parse(step.options.model_dump(mode="json")) == step.options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"long": "locl"}, "long: unknown attention operator 'locl': did you mean 'local'"),
        ({"long": {"attention": "local", "windw": 3}}, "did you mean 'window'"),
        ({"short": 3}, "short: expected the name of an operator"),
        ({"crossover": -1}, "crossover"),
        ({"crossover": "guessed"}, "crossover"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ByLength.parse(settings)
