"""The teacher's outputs on disk: the same as without, computed once, and never trusted when damaged."""

import copy
import logging

import pytest
import torch
import transformers
from datasets import Dataset
from torch.utils.data import DataLoader

from effitrans import Distillation, UsageError, distill, load_task, make_student
from effitrans.distillation.cache import CachedTeacher, with_index
from effitrans.distillation.cache.packing import from_largest, largest
from effitrans.distillation.cache.teacher import INDEX
from effitrans.distillation.objectives.base import attended
from effitrans.distillation.teacher import LiveTeacher
from effitrans.tasks.padding import Padding
from effitrans.training.data import Data
from tests.architectures.families import FAMILIES
from tests.tasks.cases import CASES, make_model
from tests.training.helpers import SIZES, VOCABULARY, assert_same_weights, bert, sentences, splits, weights
from tests.training.kills import at_step

STATES = {"cache": True, "objective": "response,feature"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFITRANS_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches" / "teachers"


@pytest.fixture(scope="module")
def teacher():
    return bert(seed=7, num_hidden_layers=3, hidden_size=48).eval()


@pytest.fixture
def passes(teacher):
    """A list with one entry for every forward pass of the teacher."""
    seen = []
    handle = teacher.register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


def _config(**values):
    return Distillation.parse({"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, **values})


@pytest.mark.parametrize("settings", [{"cache": True}, STATES], ids=["response", "with-states"])
def test_single_precision_gives_the_very_same_result(settings, teacher):
    """Every epoch is one batch of texts of one length, so both ways the teacher computes the same products."""
    rows = sentences(16, shortest=8, longest=8)
    students = {}
    for cache in (False, True):
        students[cache] = bert(hidden_size=16)
        values = (
            {**settings, "cache": {"dtype": "fp32"}} if cache else {"objective": settings.get("objective", "response")}
        )
        distill(students[cache], teacher, rows, _config(epochs=6, **values))
    assert_same_weights(students[True], students[False])


@pytest.mark.parametrize("name", ["bert", "llama", "bart", "vit"])
def test_relations_come_back(name):
    """Queries, keys and values of one layer give the loss that the running teacher gives, without a pass of it."""
    family = next(entry for entry in FAMILIES if entry.name == name)
    teacher, rows, losses = family.model(), _rows_of(family.inputs()), {}
    students, calls = [make_student(teacher, "layers=1") for _ in range(2)], []
    handle = teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    for settings in ({}, {"cache": {"dtype": "fp32"}}):
        calls.clear()
        config = _config(
            max_steps=3,
            batch_size=3,
            alpha=1,
            log_every=1,
            objective={"relation": {"layer": 2}, "response": 1},
            **settings,
        )
        result = distill(students.pop(), teacher, rows, config)
        losses["cache" in settings] = [entry["loss"] for entry in result.history if "loss" in entry]
    handle.remove()
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert len(calls) == 2 + -(-len(rows) // 3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_results_agree_within_the_precision(dtype, tolerance, teacher):
    losses = {}
    for settings in ({"objective": "response,feature"}, {**STATES, "cache": {"dtype": dtype}}):
        result = distill(bert(dropout=0.0, hidden_size=16), teacher, splits(), _config(**settings, log_every=1))
        losses["cache" in settings] = torch.tensor([entry["loss"] for entry in result.history if "loss" in entry])
    torch.testing.assert_close(losses[True], losses[False], rtol=tolerance, atol=0)
    assert dtype == "fp32" or not torch.equal(losses[True], losses[False])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_it_serves_training_under_autocast(dtype, teacher):
    losses = {}
    for settings in ({"objective": "response,feature"}, {**STATES, "cache": {"dtype": dtype}}):
        config = _config(**settings, log_every=1, precision="bf16")
        result = distill(bert(dropout=0.0, hidden_size=16), teacher, splits(), config)
        losses["cache" in settings] = torch.tensor([entry["loss"] for entry in result.history if "loss" in entry])
    torch.testing.assert_close(losses[True], losses[False], rtol=2e-2, atol=0)


def test_the_teacher_sees_each_example_once(teacher, passes, folder):
    distill(bert(), teacher, splits(96), _config(epochs=4, cache=True))
    assert len(passes) == 2 + 6, "two to see the shapes, then the batches of one epoch"
    passes.clear()
    distill(bert(seed=3), teacher, splits(96), _config(epochs=2, cache=True, seed=5, learning_rate=1e-4))
    assert len(passes) == 2
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "config"),
    [("weights", {}), ("data", {}), ("dtype", {"cache": {"dtype": "bf16"}}), ("states", STATES)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_cache_is_valid_for(change, config, teacher, folder):
    distill(bert(), teacher, splits(32), _config(cache=True, max_steps=1))
    other, data = copy.deepcopy(teacher), splits(32)
    if change == "weights":
        with torch.no_grad():
            other.classifier.bias[0] += 1e-3
    if change == "data":
        data["train"] = sentences(32, seed=9)
    distill(bert(), other, data, _config(max_steps=1, **{"cache": True, **config}))
    assert len(list(folder.iterdir())) == 2


def _damage(file, how):
    if how == "a-flipped-bit":
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    elif how == "cut-short":
        file.write_bytes(file.read_bytes()[:-8])
    elif how == "no-seal":
        file.with_suffix(".json").unlink()
    elif how == "broken-seal":
        file.with_suffix(".json").write_text('{"sha256"')
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["a-flipped-bit", "cut-short", "no-seal", "broken-seal", "gone"])
def test_damaged_parts_are_made_again(how, teacher, passes, folder, monkeypatch, caplog):
    monkeypatch.setattr("effitrans.distillation.cache.teacher._SHARD_BYTES", 32 * 4)
    expected = bert()
    config = _config(cache=True, batch_size=32)
    distill(expected, teacher, splits(96), config)
    shards = sorted(folder.rglob("*.safetensors"))
    assert len(shards) == 3
    whole = shards[1].read_bytes()
    passes.clear()
    _damage(shards[1], how)
    student = bert()
    with caplog.at_level(logging.WARNING, "effitrans"):
        distill(student, teacher, splits(96), config)
    assert len(passes) == 3, "two to see the shapes, one for the part"
    assert ("is damaged" in caplog.text) == (how not in ("no-seal", "gone"))
    assert shards[1].read_bytes() == whole
    assert_same_weights(student, expected)


class Stop(Exception):
    pass


def _stop():
    raise Stop


@pytest.mark.parametrize("when", ["filling", "training"])
def test_a_run_that_was_stopped_goes_on(when, teacher, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("effitrans.distillation.cache.teacher._SHARD_BYTES", 16 * 16 * 4)
    config = _config(**STATES, save_every=4)
    expected = distill(bert(), teacher, splits(), config, output_dir=tmp_path / "undisturbed")
    for file in folder.rglob("*"):
        file.unlink() if file.is_file() else None
    if when == "filling":
        calls = []

        def count(*_):
            calls.append(1)
            if len(calls) == 6:
                raise Stop

        undo = teacher.register_forward_pre_hook(count).remove
    else:
        undo = at_step(7, _stop)
    try:
        with pytest.raises(Stop):
            distill(bert(), teacher, splits(), config, output_dir=tmp_path / "run")
    finally:
        undo()
    student = bert()
    result = distill(student, teacher, splits(), config, output_dir=tmp_path / "run", resume=True)
    assert_same_weights(student, expected.model)
    assert result.history == expected.history


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_largest_logits_keep_their_probabilities(temperature):
    logits = 3 * torch.randn(4, 5, 30, generator=torch.Generator().manual_seed(0))
    whole = from_largest(*largest(logits, 6, temperature), 30)
    expected, found = (side.div(temperature).softmax(-1) for side in (logits, whole))
    top = logits.topk(6, -1).indices
    torch.testing.assert_close(found.gather(-1, top), expected.gather(-1, top))
    others = found.scatter(-1, top, -1.0)
    left = (1 - expected.gather(-1, top).sum(-1)) / 24
    torch.testing.assert_close(others[others >= 0].view(4, 5, 24), left[..., None].expand(-1, -1, 24))


def _rows_of(batch):
    return Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()})


def _texts(task_inputs):
    rows = sentences(6)
    return {
        "bert": rows,
        "spans": rows.remove_columns("labels").add_column("start_positions", [0] * 6).add_column(
            "end_positions", [1] * 6
        ),
    }[task_inputs]  # fmt: skip


def _span_model():
    torch.manual_seed(0)
    return transformers.BertForQuestionAnswering(
        transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **SIZES)
    ).eval()


def _cases():
    for family in FAMILIES:
        if family.name in ("gpt2", "t5", "bart", "vit", "base-seq2seq", "base-decoder"):
            yield pytest.param(family.model, lambda family=family: _rows_of(family.inputs()), id=family.name)
    yield pytest.param(lambda: bert().eval(), lambda: _texts("bert"), id="bert")
    yield pytest.param(_span_model, lambda: _texts("spans"), id="answer-spans")


@pytest.mark.parametrize(("build", "rows"), _cases())
def test_every_output_comes_back(build, rows):
    model, rows = build(), rows()
    data = with_index(Data(train=rows, validation=None, collate=Padding(0)))
    config = _config(**{**STATES, "cache": {"dtype": "fp32"}, "batch_size": 2})
    live = LiveTeacher(model, ("output_hidden_states",))
    cached = CachedTeacher(live, data, config, data.collate([data.train[i] for i in range(2)]))
    cached.prepare()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    batch = data.collate([data.train[i] for i in order])
    assert batch[INDEX].tolist() == order
    expected, found = live(batch), cached(batch)
    compared = 0
    for name in ("logits", "start_logits", "hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        if expected.get(name) is None:
            continue
        sides = [side[name] if isinstance(side[name], tuple) else (side[name],) for side in (found, expected)]
        for mine, theirs in zip(*sides, strict=True):
            written = model.config.is_encoder_decoder and (name == "logits" or name.startswith("decoder"))
            single = name == "logits" and theirs.dim() == 2
            tokens = ... if single else attended(batch, theirs, written)
            torch.testing.assert_close(mine[tokens], theirs[tokens].float(), rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared > 1


def test_a_language_model_learns_from_the_largest_logits():
    family = next(entry for entry in FAMILIES if entry.name == "gpt2")
    teacher, losses = family.model(), []
    rows = _rows_of(family.inputs())
    for settings in ({}, {"cache": {"top_k": 40}}):
        student = make_student(teacher, "layers=1")
        config = _config(max_steps=6, batch_size=3, objective="response", alpha=1, log_every=1, **settings)
        losses.append([entry["loss"] for entry in distill(student, teacher, rows, config).history])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    with pytest.raises(UsageError, match="top_k 50, and the teacher has no logits over more"):
        distill(make_student(teacher, 1), teacher, rows, _config(cache={"top_k": 50}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache": {"topk": 4}}, "cache: unknown TeacherCache key 'topk': did you mean 'top_k'"),
        ({"cache": {"top_k": 4}, "objective": "response,logit_mse"}, "logits that objective 'logit_mse'"),
        ({"cache": {"top_k": 4}, "objective": {"response": {"temperature": 1}, "dkd": 1}}, "1.0 and 2.0"),
        ({"cache": True, "objective": "response,attention"}, "'attention' reads the masks"),
    ],
)
def test_refused_settings(values, message):
    with pytest.raises(UsageError, match=message):
        Distillation.parse(values)


def test_images_are_prepared_when_they_are_read(tmp_path, folder):
    """The number of an example outlives the preparation, and another preparation is another cache."""
    task = load_task(CASES["image-classification"].task(tmp_path))
    teacher = make_model(CASES["image-classification"].models[0], task, None, 3)
    students = []
    for cache in (False, True):
        students.append(make_student(teacher, "layers=1"))
        config = _config(max_steps=4, cache={"dtype": "fp32"} if cache else None)
        distill(students[-1], teacher, task, config)
    for mine, theirs in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    processor = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    distill(make_student(teacher, "layers=1"), teacher, task, _config(max_steps=1, cache=True), processor=processor)
    processor.image_mean = [0.4]
    distill(make_student(teacher, "layers=1"), teacher, task, _config(max_steps=1, cache=True), processor=processor)
    assert len(list(folder.iterdir())) == 3


def test_refused_data(teacher):
    loader = DataLoader(list(sentences(8)), batch_size=2, collate_fn=Padding(0))
    with pytest.raises(UsageError, match="cannot be cached for a DataLoader"):
        distill(bert(), teacher, loader, Distillation(cache=True))

    with pytest.raises(UsageError, match="drawn anew in every epoch"):
        with_index(Data(train=sentences(8), validation=None, collate=Padding(0), renew=list))


def test_too_large_for_half_precision(teacher):
    loud = copy.deepcopy(teacher)
    with torch.no_grad():
        loud.classifier.bias += 1e5
    with pytest.raises(UsageError, match="set the cache's dtype to 'bf16'"):
        distill(bert(), loud, sentences(8), _config(cache=True))


def test_data_without_labels_is_evaluated_from_the_cache(teacher, passes):
    data = {split: rows.remove_columns("labels") for split, rows in splits(32, 16).items()}
    expected = distill(bert(), teacher, data, _config(max_steps=4))
    passes.clear()
    result = distill(bert(), teacher, data, _config(max_steps=4, cache={"dtype": "fp32"}))
    assert len(passes) == 2 + 3
    assert result.history[-1]["eval_loss"] == pytest.approx(expected.history[-1]["eval_loss"], rel=1e-4)


def test_the_folder_may_be_named(teacher, tmp_path, folder):
    distill(bert(), teacher, sentences(8), _config(cache={"folder": str(tmp_path / "here")}, max_steps=1))
    assert list((tmp_path / "here").rglob("*.safetensors"))
    assert not folder.exists()
    assert weights(teacher)
