"""What is particular to the kinds that read text, each against a plain way of working it out."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effitrans.errors import UsageError
from effitrans.tasks import KINDS, build_processor, collator, encode, load_task, predict
from effitrans.tasks.kinds.masked_lm import mask
from effitrans.tasks.kinds.question_answering import OUTSIDE, best_span
from effitrans.tasks.kinds.seq2seq_lm import decoder_inputs
from tests.tasks.cases import CASES, make, make_model


def rewritten(task, folder, rows, **changes):
    """The same task with other rows in its test split."""
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {**task.model_dump(), **changes}
    return load_task({**values, "data": {"train": values["data"]["train"], "test": str(folder / "other.jsonl")}})


# Token classification


@pytest.mark.parametrize("method", ["bpe", "words", "bytes"])
def test_tags_stand_at_first_tokens(tmp_path, method):
    base = CASES["token-classification"].task(tmp_path)
    rows = [
        {"words": ["the", "quickest", "cat", "日本"], "tags": ["O", "O", "B-ANIMAL", "B-ANIMAL"]},
        {"words": ["cat"], "tags": ["B-ANIMAL"]},
        {"words": [], "tags": []},
    ]
    task = rewritten(base, tmp_path, rows, tokenizer={"method": method, "vocab_size": 300})
    tokenizer = build_processor(task)
    names = task.label_names()
    assert names == ("B-ANIMAL", "O")
    for entry, row in zip(encode(task, "test", tokenizer), rows, strict=True):
        firsts = [at for at, label in enumerate(entry["labels"]) if label != -100]
        assert [names[entry["labels"][at]] for at in firsts] == row["tags"]
        bounds = [*firsts, len(entry["input_ids"])]
        for number, word in enumerate(row["words"]):
            tokens = entry["input_ids"][bounds[number] : bounds[number + 1]]
            spelled = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            assert spelled == (word if method != "words" or word in ("the", "cat") else spelled)


def test_words_without_a_tag_are_not_asked(tmp_path):
    task, model, tokenizer = make("token-classification", "base", tmp_path)
    rows = [{"words": ["the", "cat", "cat"], "tags": [None, "B-ANIMAL", None]}, {"words": ["the"], "tags": ["O"]}]
    task = rewritten(task, tmp_path, rows)
    entry = encode(task, "test", tokenizer)[0]
    assert [label for label in entry["labels"] if label != -100] == [task.label_names().index("B-ANIMAL")]
    found = predict(model, task, "test", tokenizer)
    assert found.references == [["B-ANIMAL"], ["O"]]
    assert [len(tags) for tags in found.predictions] == [1, 1]
    assert found.weights.tolist() == [1, 1]
    unlabelled = load_task({**task.model_dump(), "data": {"train": str(tmp_path / "other.jsonl")}, "labels": None})
    assert unlabelled.label_names() == ("B-ANIMAL", "O")


def test_tags_of_truncated_words_are_answered_outside(tmp_path):
    task, model, tokenizer = make("token-classification", "bert", tmp_path)
    words = ["cat"] * 300
    task = rewritten(task, tmp_path, [{"words": words, "tags": ["B-ANIMAL"] * 300}])
    found = predict(model, task, "test", tokenizer)
    assert len(found.predictions[0]) == len(found.references[0]) == 300
    assert 0 < found.weights[0] <= 64
    assert set(found.predictions[0][64:]) == {"O"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, r"row 1 .* 2 words and 1 tags"),
        ({"words": ["a"], "tags": ["B-PLANT"]}, "'B-PLANT', which is none of the 2 labels"),
    ],
)
def test_unusable_tags_are_refused(tmp_path, row, message):
    task = CASES["token-classification"].task(tmp_path)
    with pytest.raises(UsageError, match=message):
        encode(rewritten(task, tmp_path, [row]), "test", build_processor(task))


def test_words_that_are_no_list_are_refused(tmp_path):
    task = rewritten(CASES["token-classification"].task(tmp_path), tmp_path, [{"words": "a b", "tags": ["O", "O"]}])
    with pytest.raises(UsageError, match="expected a list of words"):
        encode(task, "test", build_processor(task))


# Question answering


def test_answer_positions_spell_the_answer(tmp_path):
    """In every window that holds it; a window without it points at its first token."""
    task, _, tokenizer = make("question-answering", "bert", tmp_path)
    rows, encoded = task.rows("train"), encode(task, "train", tokenizer)
    assert len(encoded) > len(rows)
    found = set()
    for entry in encoded:
        row = rows[entry["index"]]
        answer = row["answers"]["text"][0]
        start, end = entry["start_positions"], entry["end_positions"]
        if start:
            assert row["context"][entry["offsets"][start][0] : entry["offsets"][end][1]].strip() == answer
            found.add(entry["index"])
    assert found == set(range(len(rows)))


def test_windows_cover_the_context_and_overlap(tmp_path):
    task, _, tokenizer = make("question-answering", "bert", tmp_path)
    rows, encoded = task.rows("train"), encode(task, "train", tokenizer)
    assert max(encoded["length"]) <= 32
    for index, row in enumerate(rows):
        windows = [e["offsets"] for e in encoded if e["index"] == index]
        covered = {at for offsets in windows for span in offsets if span[0] >= 0 for at in range(*span)}
        assert {at for at, char in enumerate(row["context"]) if char != " "} <= covered


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_best_span_is_the_best_of_all(length, longest, seed):
    generator = np.random.default_rng(seed)
    start, end = generator.normal(size=(2, length))
    offsets = [OUTSIDE if generator.random() < 0.3 else (3 * n, 3 * n + 2) for n in range(length)]
    every = [
        (start[i] + end[j], (offsets[i][0], offsets[j][1]))
        for i in range(length)
        for j in range(i, min(length, i + longest))
        if OUTSIDE not in (offsets[i], offsets[j])
    ]
    score, span = best_span(start, end, offsets, longest)
    if not every:
        assert span is None
    else:
        assert (score, span) == max(every)


class Pointing(torch.nn.Module):
    """Says that the answer lies at given tokens of every window."""

    def __init__(self, start, end, strength):
        super().__init__()
        self.start, self.end, self.strength = start, end, strength

    def forward(self, input_ids=None, attention_mask=None):
        logits = torch.zeros(2, *input_ids.shape)
        logits[0, :, self.start], logits[1, :, self.end] = self.strength, self.strength
        return type("Output", (), {"start_logits": logits[0], "end_logits": logits[1]})()


def test_answers_are_texts_of_the_context(tmp_path):
    base = CASES["question-answering"].task(tmp_path)
    rows = [
        {
            "question": "the cat",
            "context": "big dog ran",
            "answers": {"text": ["dog", "big dog"], "answer_start": [4, 0]},
        }
    ]
    task = rewritten(base, tmp_path, rows, tokenizer={"method": "words"}, max_length=None)
    tokenizer = build_processor(task)
    tokens = tokenizer.convert_ids_to_tokens(encode(task, "test", tokenizer)[0]["input_ids"])
    assert tokens == ["<s>", "the", "cat", "</s>", "big", "dog", "ran", "</s>"]
    found = predict(Pointing(4, 5, 9.0), task, "test", tokenizer)
    assert found.predictions == ["big dog"]
    assert found.references == [("dog", "big dog")]
    assert found.weights.tolist() == [2]


def test_question_without_answer(tmp_path):
    base = CASES["question-answering"].task(tmp_path)
    rows = [{"question": "the cat", "context": "big dog ran", "answers": {"text": [], "answer_start": []}}]
    rows.append({"question": "the", "context": "big dog", "answers": {"text": ["dog"], "answer_start": [4]}})
    with pytest.raises(UsageError, match=r"row 1 .*no_answer: true"):
        encode(rewritten(base, tmp_path, rows), "test", build_processor(base))
    task = rewritten(base, tmp_path, rows, options={"no_answer": True, "stride": 4})
    tokenizer = build_processor(task)
    assert encode(task, "test", tokenizer)[0]["start_positions"] == 0
    assert predict(Pointing(0, 0, 9.0), task, "test", tokenizer).predictions == ["", ""]
    assert predict(Pointing(0, 0, 9.0), task, "test", tokenizer).references == [("",), ("dog",)]
    assert predict(Pointing(7, 7, 9.0), task, "test", tokenizer).predictions[0] != ""


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["dog"], "answer_start": [0]}, "'dog' does not start at character 0"),
        ({"text": ["dog"]}, r"expected \{'text'"),
        ("dog", r"expected \{'text'"),
    ],
)
def test_unusable_answers_are_refused(tmp_path, answers, message):
    task = CASES["question-answering"].task(tmp_path)
    task = rewritten(task, tmp_path, [{"question": "a", "context": "big dog", "answers": answers}])
    with pytest.raises(UsageError, match=message):
        encode(task, "test", build_processor(task))


def test_question_that_leaves_no_room_is_refused(tmp_path):
    task = CASES["question-answering"].task(tmp_path)
    row = {"question": "the cat " * 20, "context": "big dog", "answers": {"text": ["dog"], "answer_start": [4]}}
    with pytest.raises(UsageError, match="longest question leaves"):
        encode(rewritten(task, tmp_path, [row]), "test", build_processor(task))


def test_answers_need_a_tokenizer_that_knows_positions(tmp_path):
    from transformers import ByT5Tokenizer

    with pytest.raises(UsageError, match="a fast one"):
        encode(CASES["question-answering"].task(tmp_path), "test", ByT5Tokenizer())


# Masked language modelling


def test_masks_are_seeded_and_differ_between_blocks(tmp_path):
    task, _, tokenizer = make("masked-lm", "bert", tmp_path)
    first, again = encode(task, "train", tokenizer), encode(task, "train", tokenizer)
    assert list(first["input_ids"]) == list(again["input_ids"])
    positions = [tuple(np.flatnonzero(np.array(labels) != -100)) for labels in first["labels"]]
    assert len(set(positions)) > len(positions) // 2
    other = load_task({**task.model_dump(), "options": {"mask_seed": 1}})
    assert list(encode(other, "train", tokenizer)["labels"]) != list(first["labels"])


def test_masked_text_can_be_put_together_again(tmp_path):
    task, _, tokenizer = make("masked-lm", "bert", tmp_path)
    encoded = encode(task, "train", tokenizer)
    restored = []
    for entry in encoded:
        inputs, labels = np.array(entry["input_ids"]), np.array(entry["labels"])
        block = np.where(labels == -100, inputs, labels)
        assert (block[0], block[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        restored += block[1:-1].tolist()
    assert restored == tokenizer("\n\n".join(task.rows("train")["text"]), add_special_tokens=False)["input_ids"]


def test_shares_of_masks(tmp_path):
    _, _, tokenizer = make("masked-lm", "bert", tmp_path)
    block = np.concatenate([[1], np.full(20_000, 50), [2]])
    inputs, labels = mask(block, tokenizer, 0.15, np.random.default_rng(0))
    chosen = labels != -100
    assert chosen.sum() == 3000
    assert not chosen[[0, -1]].any()
    assert (inputs[chosen] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (inputs[chosen] == 50).mean() == pytest.approx(0.1, abs=0.03)
    assert (inputs[~chosen] == block[~chosen]).all()


def test_training_masks_anew_from_the_default_generator(tmp_path):
    task, model, tokenizer = make("masked-lm", "bert", tmp_path)
    encoded = encode(task, "train", tokenizer, model)
    entries = [encoded[n] for n in range(3)]
    still, anew = (collator(task, tokenizer, model, train=train) for train in (False, True))
    assert torch.equal(still(entries)["labels"], still(entries)["labels"])
    torch.manual_seed(0)
    first, second = anew(entries), anew(entries)
    torch.manual_seed(0)
    again = anew(entries)
    assert not torch.equal(first["labels"], second["labels"])
    assert torch.equal(first["labels"], again["labels"])

    def original(batch):
        return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])

    assert torch.equal(original(first), original(still(entries)))


def test_tokenizer_without_mask_is_refused(tmp_path):
    task = CASES["masked-lm"].task(tmp_path)
    tokenizer = build_processor(task)
    tokenizer.mask_token = None
    with pytest.raises(UsageError, match="no mask token"):
        encode(task, "test", tokenizer)


# Sequence to sequence


@pytest.mark.parametrize("family", ["t5", "bart", "base"])
def test_decoder_inputs_are_those_of_the_model(tmp_path, family):
    task, model, tokenizer = make("seq2seq-lm", family, tmp_path)
    encoded = encode(task, "test", tokenizer, model)
    batch = collator(task, tokenizer, model)([encoded[n] for n in range(5)])
    own = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    assert torch.equal(batch["decoder_input_ids"], own)
    assert all(labels[-1] == tokenizer.eos_token_id for labels in encoded["labels"])


def test_model_without_start_token_is_refused():
    model = torch.nn.Linear(1, 1)
    model.config = type("Config", (), {"decoder_start_token_id": None})()
    with pytest.raises(UsageError, match="decoder_start_token_id"):
        decoder_inputs(torch.ones(1, 2, dtype=torch.long), model, 0)


def test_targets_are_truncated_but_end(tmp_path):
    task = CASES["seq2seq-lm"].task(tmp_path)
    task = load_task({**task.model_dump(), "options": {"max_target_length": 3}})
    tokenizer = build_processor(task)
    labels = encode(task, "test", tokenizer, make_model("t5", task, tokenizer))["labels"]
    assert {len(ids) for ids in labels} == {3}
    assert all(ids[-1] == tokenizer.eos_token_id for ids in labels)


def test_target_length_beyond_the_model_is_refused(tmp_path):
    task, model, tokenizer = make("seq2seq-lm", "bart", tmp_path)
    task = load_task({**task.model_dump(), "options": {"max_target_length": 65}})
    with pytest.raises(UsageError, match=r"options\.max_target_length 65 and the model takes 64"):
        encode(task, "test", tokenizer, model)


def test_answers_stop_where_the_model_ends(tmp_path):
    task, model, tokenizer = make("seq2seq-lm", "bart", tmp_path)
    task = load_task({**task.model_dump(), "options": {"max_new_tokens": 500}})
    assert len(predict(model, task, "test", tokenizer, limit=2)) == 2


def test_target_length_holds_without_a_model(tmp_path):
    task = CASES["seq2seq-lm"].task(tmp_path)
    task = load_task({**task.model_dump(), "options": {"max_target_length": 3}})
    assert max(map(len, encode(task, "test", build_processor(task))["labels"])) == 3


def test_prefix_is_put_before_sources(tmp_path):
    task = CASES["seq2seq-lm"].task(tmp_path)
    tokenizer = build_processor(task)
    task = load_task({**task.model_dump(), "options": {"prefix": "the cat: "}})
    for ids in encode(task, "test", tokenizer)["input_ids"]:
        assert tokenizer.decode(ids).startswith("the cat: ")


def test_answers_are_greedy_unless_asked_otherwise(tmp_path):
    task, model, tokenizer = make("seq2seq-lm", "t5", tmp_path)
    model.generation_config.update(num_beams=3, do_sample=True, temperature=50.0)
    first, again = (predict(model, task, "test", tokenizer) for _ in range(2))
    assert first.predictions == again.predictions
    asked = []
    generate = model.generate
    model.generate = lambda **settings: asked.append(settings) or generate(**settings)
    predict(model, task, "test", tokenizer, limit=2, generation={"num_beams": 2, "max_new_tokens": 3})
    assert (asked[0]["num_beams"], asked[0]["max_new_tokens"], asked[0]["do_sample"]) == (2, 3, False)
    assert "labels" not in asked[0]


def test_generation_for_other_kinds_is_refused(tmp_path):
    task, model, tokenizer = make("sequence-classification", "bert", tmp_path)
    with pytest.raises(UsageError, match="generation settings are for tasks whose answer is a generated text"):
        predict(model, task, "test", tokenizer, generation={"num_beams": 2})


def test_encoder_is_refused(tmp_path):
    task = CASES["seq2seq-lm"].task(tmp_path)
    tokenizer = build_processor(task)
    model = make_model("gpt2", CASES["causal-lm"].task(tmp_path), tokenizer)
    with pytest.raises(UsageError, match="GPT2LMHeadModel is none"):
        encode(task, "test", tokenizer, model)


# Embedding


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_cosines_are_those_of_single_texts(tmp_path, pooling):
    task, model, tokenizer = make("embedding", "bert", tmp_path)
    task = load_task({**task.model_dump(), "options": {"pooling": pooling, "scale": 2.5}})
    expected = []
    for row in task.rows("test"):
        vectors = []
        for column in ("sentence1", "sentence2"):
            ids = torch.tensor([tokenizer(row[column])["input_ids"]])
            with torch.inference_mode():
                states = model(input_ids=ids).last_hidden_state[0]
            vectors.append(states.mean(0) if pooling == "mean" else states[0])
        expected.append(torch.cosine_similarity(*vectors, dim=0).item())
    found = predict(model, task, "test", tokenizer)
    assert found.predictions == pytest.approx(expected, abs=1e-5)
    wanted = np.array(found.references) / 2.5
    assert found.losses == pytest.approx((np.array(expected) - wanted) ** 2, abs=1e-5)


def test_numbers_that_are_none_are_refused(tmp_path, tiny_tokenizer):
    for kind in ("regression", "embedding"):
        task = CASES[kind].task(tmp_path)
        task = rewritten(task, tmp_path, [{"sentence1": "a", "sentence2": "b", "score": "high"}])
        with pytest.raises(UsageError, match=r"row 1 .* 'high' in 'score': expected a number"):
            KINDS[kind].encode(task, task.rows("test"), tiny_tokenizer, None, None)
