"""An embedding task pools as the folder of the model says, if it is one of sentence-transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from effitrans import load_task
from effitrans.checkpoint import load_model, load_processor
from effitrans.errors import UsageError
from effitrans.tasks import predict
from effitrans.tasks.pooling import pool

PAIRS = [
    ("good film", "a bad plot very not good"),
    ("the", "poor"),
    ("fine plot the film", "great awful"),
    ("a", "not"),
]
LEGACY = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}


@pytest.fixture
def task(tmp_path):
    rows = [{"a": a, "b": b, "y": i} for i, (a, b) in enumerate(PAIRS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {split: str(tmp_path / "pairs.jsonl") for split in ("train", "test")}
    return {"name": "pairs", "kind": "embedding", "data": data, "inputs": ["a", "b"], "target": "y"}


@pytest.fixture
def folder(tiny_tokenizer, tmp_path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(**sizes, vocab_size=len(tiny_tokenizer), max_position_embeddings=32, initializer_range=0.5)
    BertModel(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def describe(folder: Path, pooling: dict | None, *more: str, **settings: dict) -> None:
    entries = [("Transformer", ""), ("Pooling", "1_Pooling"), *((name, f"2_{name}") for name in more)]
    modules = [
        {"name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(entries)
    ]
    files = {"modules": modules, "1_Pooling/config": pooling, **settings}
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))


def cosines(folder: Path, task: dict, **options) -> list[float]:
    chosen = load_task({**task, "options": options})
    predicted = predict(load_model(folder), chosen, "test", load_processor(folder)).predictions
    return list(predicted)


def vector(folder: Path, text: str, mode: str, length: int | None = None) -> torch.Tensor:
    """The vector of one text, by the definition of the pooling."""
    tokenizer = load_processor(folder)
    ids = tokenizer(text, truncation=length is not None, max_length=length)["input_ids"]
    with torch.inference_mode():
        states = load_model(folder)(torch.tensor([ids])).last_hidden_state[0]
    positions = torch.arange(1, len(ids) + 1)[:, None]
    return {
        "mean": states.mean(0),
        "cls": states[0],
        "max": states.max(0).values,
        "lasttoken": states[-1],
        "mean_sqrt_len_tokens": states.sum(0) / len(ids) ** 0.5,
        "weightedmean": (states * positions).sum(0) / positions.sum(),
    }[mode]


def expected(folder: Path, mode: str, length: int | None = None, prompt: str = "") -> list[float]:
    sides = [[vector(folder, prompt + text, mode, length) for text in pair] for pair in PAIRS]
    return [torch.cosine_similarity(a, b, dim=0).item() for a, b in sides]


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"])
def test_the_pooling_of_the_folder(folder, task, mode):
    describe(folder, {"embedding_dimension": 32, "pooling_mode": mode}, "Normalize")
    assert cosines(folder, task) == pytest.approx(expected(folder, mode), abs=1e-5)
    assert cosines(folder, task, pooling="max") == pytest.approx(expected(folder, "max"), abs=1e-5)


@pytest.mark.parametrize("mode", LEGACY)
def test_poolings_as_earlier_versions_wrote_them(folder, task, mode):
    describe(folder, {flag: name == mode for name, flag in LEGACY.items()})
    assert cosines(folder, task) == pytest.approx(expected(folder, mode), abs=1e-5)


def test_poolings_that_are_joined(folder, task):
    describe(folder, {"pooling_mode": ["mean", "max"]})
    joined = [[torch.cat([vector(folder, text, mode) for mode in ("mean", "max")]) for text in pair] for pair in PAIRS]
    right = [torch.cosine_similarity(a, b, dim=0).item() for a, b in joined]
    assert cosines(folder, task) == pytest.approx(right, abs=1e-5)


def test_without_modules_the_mean(folder, task):
    assert cosines(folder, task) == pytest.approx(expected(folder, "mean"), abs=1e-5)


def test_prompt_length_and_case_are_honoured(folder, task):
    describe(
        folder,
        {"pooling_mode": "mean"},
        config_sentence_transformers={"prompts": {"query": "THE FILM "}, "default_prompt_name": "query"},
        sentence_bert_config={"max_seq_length": 5, "do_lower_case": False},
    )
    assert cosines(folder, task) == pytest.approx(expected(folder, "mean", 5, "THE FILM "), abs=1e-5)
    longer = cosines(folder, {**task, "max_length": 12})
    assert longer == pytest.approx(expected(folder, "mean", 12, "THE FILM "), abs=1e-5)


@pytest.mark.parametrize(
    ("pooling", "more", "settings", "message"),
    [
        pytest.param({"pooling_mode": "mean"}, ("Dense",), {}, r"Dense \(2_Dense\).*pooling: mean", id="dense"),
        pytest.param({"pooling_mode": "median"}, (), {}, "unknown pooling 'median'", id="pooling"),
        pytest.param({"pooling_mode": 3}, (), {}, "unknown pooling 3", id="pooling-3"),
        pytest.param(
            {"pooling_mode": "mean"},
            (),
            {"config_sentence_transformers": {"prompts": [], "default_prompt_name": "q"}},
            "no prompt 'q'",
            id="no-prompt",
        ),
        pytest.param(None, (), {}, "config.json is missing", id="no-config"),
        pytest.param({"pooling_mode": "mean"}, ("Pooling",), {}, "2 Pooling modules", id="two"),
        pytest.param(
            {"pooling_mode": "mean", "include_prompt": False},
            (),
            {"config_sentence_transformers": {"prompts": {"q": "the "}, "default_prompt_name": "q"}},
            "leaves out the prompt",
            id="prompt-left-out",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(folder, task, pooling, more, settings, message):
    describe(folder, pooling, *more, **settings)
    with pytest.raises(UsageError, match=message):
        cosines(folder, task)
    assert cosines(folder, task, pooling="mean") == pytest.approx(expected(folder, "mean"), abs=1e-5)


def test_modules_that_are_damaged_are_refused(folder, task):
    describe(folder, {})
    for content in ("{", "{}", "[3]", '[{"type": "models.Pooling", "path": "/etc"}]'):
        (folder / "modules.json").write_text(content)
        with pytest.raises(UsageError, match=r"modules\.json"):
            cosines(folder, task)


def test_pooling_does_not_depend_on_the_side_of_the_padding():
    states = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    shifted = torch.stack([states[0].roll(1, 0), states[1]]), torch.stack([mask[0].roll(1), mask[1]])
    names = ["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens"]
    assert torch.allclose(pool(states, mask, names), pool(*shifted, names))


@pytest.mark.slow
def test_sentence_transformers_agrees(folder, task):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    describe(folder, {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}, "Normalize")
    (folder / "2_Normalize").mkdir()
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    sides = [model.encode([pair[side] for pair in PAIRS], convert_to_tensor=True) for side in (0, 1)]
    assert cosines(folder, task) == pytest.approx(torch.cosine_similarity(*sides).tolist(), abs=1e-5)
