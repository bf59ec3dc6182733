"""Fixtures that several suites share: a tiny tokenizer, tiny models in folders, a tiny task file."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

# No test may wait for a network; read when the hub's client is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Two runs are bit-equal under one number of threads; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Nothing that an earlier run of the tests kept may be found.
os.environ["EFFITRANS_CACHE"] = tempfile.mkdtemp(prefix="effitrans-cache-")
atexit.register(shutil.rmtree, os.environ["EFFITRANS_CACHE"], ignore_errors=True)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

WORDS = ["good", "bad", "fine", "poor", "great", "awful", "film", "plot", "very", "not", "the", "a"]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A word-level tokenizer of twelve words and five special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A random BERT classifier (2 labels, 4 layers) and its tokenizer in a folder. Not to be written to."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_task(tmp_path: Path) -> Path:
    """A sentiment task of 48/16/16 sentences in JSON lines whose label a model can learn."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "task"
    folder.mkdir()
    for split, rows in (("train", 48), ("validation", 16), ("test", 16)):
        lines = []
        for row in range(rows):
            label = row % 2
            length = int(torch.randint(2, 9, (1,), generator=generator))
            picks = torch.randint(0, 3, (length,), generator=generator).tolist()
            words = [WORDS[2 * pick + (1 - label)] for pick in picks]
            lines.append(json.dumps({"sentence": " ".join(words), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    file = folder / "task.yaml"
    file.write_text(
        "name: tiny-sentiment\nkind: sequence-classification\n"
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
        "inputs: sentence\ntarget: label\nmetrics: [accuracy]\n"
    )
    return file
