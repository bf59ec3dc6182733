"""A tiny task of every kind, and tiny random models that can do it: what the shared suite runs over."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from effitrans.tasks import Task, build_processor, load_task
from effitrans.tasks.loading import load_for_task

WORDS = "the cat dog bird sat ran flew on under mat tree house big small red blue very quick slow old".split()  # noqa: SIM905
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def sentence(seed: int, shortest: int = 2, longest: int = 14) -> str:
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
    return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator).tolist())


def _sequence_classification(row: int) -> dict[str, Any]:
    return {"sentence": sentence(row), "label": ["bad", "good", "neutral"][row % 3]}


def _regression(row: int) -> dict[str, Any]:
    return {"sentence1": sentence(row), "sentence2": sentence(row + 1), "score": row % 6 / 2}


def _token_classification(row: int) -> dict[str, Any]:
    words = sentence(row).split()
    return {"words": words, "tags": ["B-ANIMAL" if word in ("cat", "dog", "bird") else "O" for word in words]}


def _question_answering(row: int) -> dict[str, Any]:
    context = sentence(row, 5, 60)
    answer = context.split()[2]
    start = len(" ".join(context.split()[:2])) + 1
    return {"question": sentence(row, 2, 4), "context": context, "answers": {"text": [answer], "answer_start": [start]}}


def _text(row: int) -> dict[str, Any]:
    return {"text": sentence(row, 20, 40)}


def _seq2seq(row: int) -> dict[str, Any]:
    return {"source": sentence(row), "target": sentence(row).upper()}


def _image(row: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(row)
    return {"image": torch.rand(8, 8, generator=generator).tolist(), "label": row % 3}


@dataclass(frozen=True)
class Case:
    """A kind's tiny task."""

    kind: str
    row: Callable[[int], dict[str, Any]]
    inputs: Any
    target: str | None
    models: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def task(self, folder: Path, train: int = 24, test: int = 11) -> Task:
        """Write the data as JSON lines and load the task."""
        for split, first, count in (("train", 0, train), ("test", 1000, test)):
            lines = [json.dumps(self.row(first + row)) for row in range(count)]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        values = {"name": f"tiny-{self.kind}", "kind": self.kind, "inputs": self.inputs, **self.settings}
        values |= {"target": self.target} if self.target else {}
        return load_task({**values, "data": {"train": "train.jsonl", "test": "test.jsonl"}}, folder)


BPE = {"tokenizer": {"method": "bpe", "vocab_size": 300}}
CASES = {
    case.kind: case
    for case in (
        Case(
            "sequence-classification",
            _sequence_classification,
            "sentence",
            "label",
            ("bert", "gpt2", "distilbert", "base"),
            BPE,
        ),
        Case("regression", _regression, ["sentence1", "sentence2"], "score", ("bert", "gpt2", "base"), BPE),
        Case("token-classification", _token_classification, "words", "tags", ("bert", "distilbert", "base"), BPE),
        Case(
            "question-answering",
            _question_answering,
            ["question", "context"],
            "answers",
            ("bert", "distilbert", "base"),
            {**BPE, "max_length": 32, "options": {"stride": 8}},
        ),
        Case("causal-lm", _text, "text", None, ("gpt2", "llama", "base"), {**BPE, "max_length": 32}),
        Case("masked-lm", _text, "text", None, ("bert", "distilbert", "base"), {**BPE, "max_length": 32}),
        Case(
            "seq2seq-lm",
            _seq2seq,
            "source",
            "target",
            ("t5", "bart", "base"),
            {**BPE, "options": {"max_new_tokens": 6}},
        ),
        Case("embedding", _regression, ["sentence1", "sentence2"], "score", ("bert", "distilbert", "base"), BPE),
        Case("image-classification", _image, "image", "label", ("vit", "base")),
    )
}


def make_model(family: str, task: Task, processor: Any, seed: int = 0) -> Any:
    """A random model of a family with the head that the task needs, as a user would have trained it."""
    import transformers

    if family == "base":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
        return load_for_task({"base": sizes}, task, seed=seed, processor=processor).model.eval()
    vocab = len(processor) if processor is not None else 0
    special = {name: getattr(processor, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    configs: dict[str, Callable[..., Any]] = {
        "bert": lambda: transformers.BertConfig(vocab_size=vocab, max_position_embeddings=64, **SIZES),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=vocab, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=64
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
        ),
        "llama": lambda: transformers.LlamaConfig(
            vocab_size=vocab, max_position_embeddings=64, num_key_value_heads=1, **SIZES
        ),
        "t5": lambda: transformers.T5Config(
            vocab_size=vocab, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=2,
        ),
        "bart": lambda: transformers.BartConfig(
            vocab_size=vocab, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
            decoder_start_token_id=2, forced_eos_token_id=None, **special,
        ),
        "vit": lambda: transformers.ViTConfig(image_size=8, num_channels=1, patch_size=2, **SIZES),
    }  # fmt: skip
    config = configs[family]()
    for name, value in task.behaviour.config_overrides(task).items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    return getattr(transformers, task.behaviour.auto_class).from_config(config).eval()


def make(kind: str, family: str, folder: Path) -> tuple[Task, Any, Any]:
    """Task, model and processor of a case."""
    task = CASES[kind].task(folder)
    processor = build_processor(task)
    return task, make_model(family, task, processor), processor
