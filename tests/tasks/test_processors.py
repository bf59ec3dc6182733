"""Tokenizers that are made: deterministic, savable, lossless where they say so."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effitrans.errors import UsageError
from effitrans.tasks import build_processor, load_task
from tests.tasks.cases import CASES

METHODS = ("bytes", "words", "bpe")


def task_of(folder, method, kind="sequence-classification", **settings):
    task = CASES[kind].task(folder)
    return load_task({**task.model_dump(), "tokenizer": {"method": method, "vocab_size": 300, **settings}})


@pytest.mark.parametrize("method", METHODS)
def test_saved_tokenizer_is_loaded_by_transformers(tmp_path, method):
    from transformers import AutoTokenizer

    made = build_processor(task_of(tmp_path, method))
    made.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("the cat sat", "unseen wörds", "", "<unk> a"):
        assert loaded(text)["input_ids"] == made(text)["input_ids"]
        assert loaded(text, "a bird")["input_ids"] == made(text, "a bird")["input_ids"]
    assert loaded.special_tokens_map == made.special_tokens_map
    assert len(loaded) == len(made)


def test_same_data_same_tokenizer_in_another_process(tmp_path):
    tasks = [task_of(tmp_path, method) for method in ("words", "bpe")]
    script = (
        "from effitrans.tasks import build_processor, load_task\n"
        f"for task in {[task.model_dump(mode='json') for task in tasks]!r}:\n"
        "    print(build_processor(load_task(task)).backend_tokenizer.to_str())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"}
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.splitlines() == [build_processor(task).backend_tokenizer.to_str() for task in tasks]


def test_special_tokens(tmp_path):
    encoder = build_processor(task_of(tmp_path, "bpe"))
    assert [encoder.pad_token_id, encoder.bos_token_id, encoder.eos_token_id, encoder.unk_token_id] == [0, 1, 2, 3]
    assert encoder.mask_token_id == 4
    ids = encoder("the cat", "a bird")["input_ids"]
    assert ids[0] == 1
    assert ids.count(2) == 2
    assert "token_type_ids" not in encoder("a")
    translator = build_processor(task_of(tmp_path, "bpe", "seq2seq-lm"))
    ids = translator("the cat")["input_ids"]
    assert ids[0] != 1
    assert ids[-1] == 2
    assert build_processor(task_of(tmp_path, "bytes", "masked-lm")).mask_token_id == 259
    assert build_processor(task_of(tmp_path, "bytes")).mask_token_id is None


def test_lowercase_and_unknown_words(tmp_path):
    words = build_processor(task_of(tmp_path, "words", lowercase=True))
    assert words("THE Cat")["input_ids"] == words("the cat")["input_ids"]
    assert words.unk_token_id in words("the zebra")["input_ids"]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
def test_bpe_and_bytes_lose_nothing(tmp_path_factory, text):
    for method in ("bytes", "bpe"):
        tokenizer = _cached(tmp_path_factory, method)
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text


_made: dict = {}


def _cached(factory, method):
    if method not in _made:
        _made[method] = build_processor(task_of(factory.mktemp(method), method))
    return _made[method]


def test_images_need_none():
    assert build_processor("digits") is None


def test_training_needs_a_train_split_and_room(tmp_path):
    task = CASES["sequence-classification"].task(tmp_path)
    values = task.model_dump()
    without = load_task({**values, "data": {"test": values["data"]["test"]}})
    with pytest.raises(UsageError, match=r"no train split .*\(splits: test\)"):
        build_processor(without)
    with pytest.raises(UsageError, match="below 261"):
        build_processor(load_task({**values, "tokenizer": {"method": "bpe", "vocab_size": 100}}))
