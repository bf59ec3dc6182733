"""`effitrans prune` in all its forms, and the recipe steps behind it."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from effitrans import checkpoint
from effitrans.architectures import adapter
from tests.cli.conftest import effitrans  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def quick_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring is tested elsewhere: nothing is timed."""
    import effitrans.evaluation as evaluation

    real = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **options: real(*a, **{**options, "cost": None}))


def test_vocabulary_alone(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans("prune", tiny_teacher, "--vocab", tiny_task, "--output", tmp_path / "o")
    assert outcome.code == 0, outcome.err
    small, tokenizer = checkpoint.load_config(tmp_path / "o"), checkpoint.load_processor(tmp_path / "o")
    assert small.vocab_size == len(tokenizer) < checkpoint.load_config(tiny_teacher).vocab_size
    assert not hasattr(small, "quantization_config"), "a smaller vocabulary needs no manifest"


def test_steps_with_recovery_then_vocabulary(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--heads", 0.5, "--ffn", 0.5, "--method", "fisher"),
        *("--steps", 2, "--schedule", "cubic", "--recover", 1, "--vocab", tiny_task, "--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    verbs = [entry["verb"] for entry in checkpoint.history(model)]
    assert verbs.count("prune") == 2
    assert "distill" in verbs
    assert [layer.attention[0].num_heads for layer in adapter(model).layers] == [2] * 4


def test_hidden_width(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans("prune", tiny_teacher, "--task", tiny_task, "--hidden", 0.5, "--output", tmp_path / "o")
    assert outcome.code == 0, outcome.err
    before, after = (AutoModelForSequenceClassification.from_pretrained(f) for f in (tiny_teacher, tmp_path / "o"))
    assert 2 * after.get_input_embeddings().embedding_dim == before.get_input_embeddings().embedding_dim


@pytest.mark.slow
def test_learned_gates_miss_their_target_on_a_tiny_task(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--ffn", 0.5, "--method", "l0", "--output", tmp_path / "o")
    )
    assert outcome.code == 3, outcome.err
    assert "points less than the 50.0% asked for" in " ".join(outcome.err.split())
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_several_budgets_with_a_sampler(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    pytest.importorskip("optuna", reason="optuna is not installed (extra search)")
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--parameters", 0.8, "--memory", 0.9, "--sampler", "tpe"),
        *("--length", 16, "--batch", 4, "--evaluations", 8, "--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    costs = checkpoint.history(model)[-1]["summary"]["costs"]
    assert costs["parameters"] <= 0.8
    assert costs["memory"] <= 0.9 * 1.03


@pytest.mark.slow
def test_sublayers(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--keep-attention-layers", 3, "--keep-ffn-layers", 2),
        *("--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    layers = adapter(AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")).layers
    assert sum(len(layer.attention) for layer in layers) == 3
    assert sum(bool(layer.feed_forward.width) for layer in layers) == 2
    shown = effitrans("inspect", tmp_path / "o")
    assert shown.code == 0, shown.err


@pytest.mark.slow
def test_pattern_with_recovery(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--pattern", "2:4", "--method", "wanda", "--recover", 1),
        *("--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    assert checkpoint.bytes_on_disk(tmp_path / "o") < 0.8 * checkpoint.bytes_on_disk(tiny_teacher)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    assert (model.bert.encoder.layer[0].intermediate.dense.weight == 0).float().mean() == 0.5


@pytest.mark.slow
def test_sparsity_over_all_matrices(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--sparsity", 0.75, "--scope", "global"),
        *("--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    weights = [m.weight.detach().flatten() for m in model.modules() if type(m).__name__ == "SparseLinear"]
    assert (torch.cat(weights) == 0).float().mean() == pytest.approx(0.75, abs=1e-3)


@pytest.mark.slow
def test_search(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--parameters", 0.7, "--evaluations", 8),
        *("--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    assert (
        model.num_parameters()
        <= 0.7 * AutoModelForSequenceClassification.from_pretrained(tiny_teacher).num_parameters()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", 0.5), "--task TASK is required"),
        (("--latency", 0.5, "--heads", 0.5, "--task", "sst2"), "leave out --heads"),
        (("--parameters", 0.001), "cannot be reached: the smallest structure"),
        (("--method", "l0", "--keep-layers", 2, "--ffn", 0.5, "--task", "sst2"), "leave out --keep-layers"),
        (("--heads", 0.5, "--schedule", "cubic", "--steps", 0), "steps"),
    ],
)
def test_bad_input(effitrans, tiny_teacher, tiny_task, tmp_path, arguments, message):  # noqa: F811
    if "--parameters" in arguments:
        arguments = (*arguments, "--task", tiny_task)
    outcome = effitrans("prune", tiny_teacher, *arguments, "--output", tmp_path / "o")
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
