"""What one verb accepts as data, every verb accepts."""

import copy
from functools import partial

import pytest
from torch.utils.data import DataLoader

from effitrans import Distillation, Training, UsageError, distill, prune, quantize, train
from effitrans.evaluation import attention_error
from effitrans.pruning import HeadPruning, Sparsity, measure_importance
from effitrans.pruning.config import Importance
from effitrans.quantization import GPTQ
from effitrans.tasks import encode
from effitrans.tasks.padding import pad_batch
from tests.tasks.cases import make

STEPS = {"max_steps": 1, "learning_rate": 1e-3}
DRAWN = {"calibration_examples": 24, "batch_size": 8}

VERBS = {
    "train": lambda model, data, processor: train(model, data, Training(**STEPS), processor=processor),
    "distill": lambda model, data, processor: distill(
        model, copy.deepcopy(model), data, Distillation(**STEPS), processor=processor
    ),
    "prune": lambda model, data, processor: prune(
        model, HeadPruning(ratio=0.5, method="taylor", **DRAWN), data, processor=processor
    ),
    "sparsify": lambda model, data, processor: prune(
        model, Sparsity(sparsity=0.5, method="wanda", **DRAWN), data, processor=processor
    ),
    "measure_importance": lambda model, data, processor: measure_importance(
        model, Importance(method="taylor", **DRAWN), data, processor=processor
    ),
    "quantize": lambda model, data, processor: quantize(model, GPTQ(group_size=16, **DRAWN), data, processor=processor),
    "attention_error": lambda model, data, processor: attention_error(model, data, "linear", processor=processor),
}
WITHOUT_LABELS = ("distill", "sparsify", "quantize", "attention_error")
REPEATED = ("train", "distill")
"""Verbs that read the data again and again, and so take no stream."""

FORMS = {
    "task": lambda task, rows: task,
    "keys of a task": lambda task, rows: task.model_dump(exclude_none=True),
    "splits": lambda task, rows: {"train": rows, "validation": rows},
    "splits of lists": lambda task, rows: {"train": list(rows)},
    "data set": lambda task, rows: rows,
    "rows": lambda task, rows: list(rows),
    "loader": lambda task, rows: DataLoader(list(rows), batch_size=4, collate_fn=partial(pad_batch, pad_token_id=0)),
    "batch": lambda task, rows: pad_batch(list(rows), pad_token_id=0),
    "batches": lambda task, rows: [
        pad_batch(list(rows)[:9], pad_token_id=0),
        pad_batch(list(rows)[9:], pad_token_id=0),
    ],
    "stream": lambda task, rows: iter(list(rows)),
    "texts": lambda task, rows: list(task.rows("train")["sentence"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    task, model, processor = make("sequence-classification", "bert", tmp_path_factory.mktemp("data"))
    return task, model, processor, encode(task, "train", processor, model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_every_form(made, verb, form):
    task, model, processor, rows = made
    data = FORMS[form](task, rows)
    run = partial(VERBS[verb], copy.deepcopy(model), data, processor)
    if form == "stream" and verb in REPEATED:
        with pytest.raises(UsageError, match="can be put into a list"):
            run()
    elif form == "texts" and verb not in WITHOUT_LABELS:
        with pytest.raises(UsageError, match=r"no labels that it takes|gave no loss"):
            run()
    else:
        assert run() is not None


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_the_same_of_other_data(made, verb):
    _, model, processor, _ = made
    with pytest.raises(UsageError, match=r"data is a int: expected a task, a datasets\.Dataset"):
        VERBS[verb](copy.deepcopy(model), 3, processor)
    with pytest.raises(UsageError, match=r"did you mean 'digits'"):
        VERBS[verb](copy.deepcopy(model), "digit", processor)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_finds_the_tokenizer_beside_the_model(made, verb, tmp_path):
    task, model, processor, _ = made
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert VERBS[verb](type(model).from_pretrained(tmp_path), task, None) is not None
