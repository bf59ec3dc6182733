"""Running text: every token predicted once, every byte counted once."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from effitrans.tasks import build_processor, encode, load_task, predict, text_blocks
from effitrans.tasks.text_blocks import cut, tokenize
from tests.tasks.cases import make_model, sentence

TEXT = "\n".join(sentence(seed) for seed in range(200)) + "\n naïve 日本語 😀 end  \n"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text(TEXT)
    made = {}
    for method in ("bytes", "words", "bpe"):
        task = load_task(
            {
                "name": method, "kind": "causal-lm", "inputs": "text", "data": {"train": "train.txt"},
                "tokenizer": {"method": method, "vocab_size": 400},
            },
            folder,
        )  # fmt: skip
        made[method] = build_processor(task)
    return made


any_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize("method", ["bytes", "words", "bpe"])
@settings(max_examples=80, deadline=None)
@given(text=any_text)
@example(text="😀é")
@example(text="a \n\n b  ")
@example(text="<unk> </s> <pad>")
def test_bytes_of_tokens_add_up_to_the_text(tokenizers, method, text):
    found = tokenize(text, tokenizers[method])
    assert len(found.ids) == len(found.ends)
    assert all(a <= b for a, b in zip(found.ends, found.ends[1:], strict=False))
    if len(found.ids):
        assert found.ends[-1] == len(text.encode())
    if method == "bytes":
        assert found.ends.tolist() == list(range(1, len(text.encode()) + 1))


def test_bytes_stop_where_tokens_stop(tokenizers):
    tokenizer = tokenizers["bpe"]
    found = tokenize("the cat 日本 sat", tokenizer)
    spelled = [tokenizer.decode(found.ids[: n + 1]) for n in range(len(found.ids))]
    whole = [n for n, text in enumerate(spelled) if "�" not in text]
    assert [found.ends[n] for n in whole] == [len(spelled[n].encode()) for n in whole]


@pytest.mark.parametrize("method", ["bytes", "words", "bpe"])
def test_text_in_pieces_gives_the_same_tokens(tokenizers, method, monkeypatch):
    whole = tokenize(TEXT, tokenizers[method])
    monkeypatch.setattr(text_blocks, "PIECE", 100)
    pieces = tokenize(TEXT, tokenizers[method])
    assert whole.ids.tolist() == pieces.ids.tolist()
    assert whole.ends.tolist() == pieces.ends.tolist()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(2, 12), st.data())
def test_blocks_predict_each_token_once(count, length, data):
    context = data.draw(st.integers(1, length - 1))
    blocks = list(cut(count, length, context))
    predicted = [token for block in blocks for token in range(block.predicted, block.end)]
    assert predicted == list(range(1, count))
    for block in blocks[1:]:
        assert block.predicted - block.start == context
    assert all(block.end - block.start <= length for block in blocks)


@pytest.mark.parametrize("context", [1, 5])
@pytest.mark.parametrize("method", ["bytes", "words", "bpe"])
def test_language_model_predicts_every_token_and_byte(tmp_path, method, context):
    (tmp_path / "train.txt").write_text(TEXT)
    task = load_task(
        {
            "name": "text", "kind": "causal-lm", "inputs": "text", "data": {"train": "train.txt"}, "max_length": 16,
            "tokenizer": {"method": method, "vocab_size": 400}, "options": {"context": context},
        },
        tmp_path,
    )  # fmt: skip
    tokenizer = build_processor(task)
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = predict(make_model("gpt2", task, tokenizer), task, "train", tokenizer, limit=None)
    assert found.weights.sum() == len(tokens)
    assert found.bytes.sum() == len(TEXT.encode())


def test_likelihood_is_that_of_a_plain_loop(tmp_path):
    """The sum of losses equals the sum over tokens, each predicted from what its block shows of the text before."""
    import torch

    (tmp_path / "test.txt").write_text("the cat sat on the mat")
    task = load_task(
        {
            "name": "t", "kind": "causal-lm", "inputs": "text", "data": {"test": "test.txt"}, "max_length": 8,
            "options": {"context": 3},
        },
        tmp_path,
    )  # fmt: skip
    tokenizer = build_processor(task)
    model = make_model("gpt2", task, tokenizer)
    ids = [tokenizer.eos_token_id, *tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"]]
    expected, starts = 0.0, []
    for position in range(1, len(ids)):
        start = 0 if position < 8 else 5 * ((position - 8) // 5 + 1)
        starts.append(start)
        with torch.inference_mode():
            logits = model(torch.tensor([ids[start:position]])).logits[0, -1]
        expected -= logits.log_softmax(-1)[ids[position]].item()
    found = predict(model, task, "test", tokenizer)
    assert len(found) == len(set(starts))
    assert found.losses.sum() == pytest.approx(expected, rel=1e-5)
    assert found.weights.sum() == 22


def test_tokenizer_without_a_start_leaves_out_the_first_token(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "éa": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    (tmp_path / "test.txt").write_text("éa b b b")
    task = load_task({"name": "t", "kind": "causal-lm", "inputs": "text", "data": {"test": "test.txt"}}, tmp_path)
    encoded = encode(task, "test", bare)
    assert encoded["labels"][0] == [-100, 2, 2, 2]
    assert encoded["bytes"] == [6]


def test_rows_are_joined_by_the_separator(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "ab"}\n{"text": "c"}\n')
    values = {"name": "t", "kind": "causal-lm", "inputs": "text", "data": {"test": "test.jsonl"}}
    task = load_task({**values, "options": {"separator": "--"}}, tmp_path)
    tokenizer = build_processor(task)
    encoded = encode(task, "test", tokenizer)
    assert tokenizer.decode(encoded["input_ids"][0][1:]) == "ab--c"
    assert list(encoded["bytes"]) == [5]


def test_large_logits_are_computed_in_parts(tmp_path, monkeypatch):
    (tmp_path / "test.txt").write_text(TEXT)
    values = {"name": "t", "kind": "causal-lm", "inputs": "text", "data": {"test": "test.txt"}, "max_length": 16}
    task = load_task(values, tmp_path)
    tokenizer = build_processor(task)
    model = make_model("gpt2", task, tokenizer)
    whole = predict(model, task, "test", tokenizer, limit=6)
    monkeypatch.setattr("effitrans.tasks.likelihood.MOST_LOGITS", 16 * 259 * 2)
    rows = []
    model.register_forward_hook(lambda module, inputs, output: rows.append(len(output.logits)))
    parts = predict(model, task, "test", tokenizer, limit=6)
    assert max(rows) == 2
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
