"""The whole of distillation on small problems: what it gives, what it leaves alone, and every family."""

import copy

import pytest
import torch
import transformers
from datasets import Dataset
from torch.utils.data import DataLoader

from effitrans import Distillation, Training, UsageError, checkpoint, distill, make_student, prune, train
from effitrans.distillation import OBJECTIVES
from effitrans.distillation.objectives.response import soft_divergence
from effitrans.distillation.trainer import DistillationLoss
from effitrans.pruning import Pruning
from effitrans.tasks.padding import Padding
from effitrans.training.callbacks import Epochs
from tests.architectures.families import FAMILIES, THROUGH_INTERFACE
from tests.training.helpers import SIZES, VOCABULARY, assert_same_weights, bert, sentences, splits, weights


def _logits(model, rows):
    with torch.no_grad():
        return model.eval()(**Padding(0)([rows[i] for i in range(len(rows))])).logits


@pytest.fixture(scope="module")
def teacher():
    """A teacher with soft answers: it has learned its task from noisy labels."""
    rows = sentences(256, seed=2)
    noisy = Dataset.from_dict(
        {"input_ids": rows["input_ids"], "labels": [label ^ (i % 5 == 0) for i, label in enumerate(rows["labels"])]}
    )
    model = bert(seed=7, num_hidden_layers=4)
    train(model, noisy, Training(epochs=5, batch_size=16, learning_rate=2e-3))
    return model


@pytest.mark.parametrize("objective", ["response", "response,feature"])
def test_a_student_is_nearer_to_the_teacher_than_one_without(objective, teacher):
    """On held-out data, from the same start, in as many steps."""
    held_out, settings = sentences(200, seed=11), {"epochs": 4, "batch_size": 16, "learning_rate": 1e-3}
    expected = _logits(teacher, held_out)
    divergences, start = {}, make_student(teacher, "layers=1")
    for name in ("alone", "taught"):
        student = copy.deepcopy(start)
        if name == "alone":
            train(student, splits(), Training(**settings))
        else:
            distill(student, teacher, splits(), Distillation(**settings, objective=objective, alpha=0.9))
        divergences[name] = soft_divergence(_logits(student, held_out), expected, 1.0).item()
    assert divergences["taught"] < 0.6 * divergences["alone"]


def test_the_teacher_is_left_as_it_was(teacher):
    twin = copy.deepcopy(teacher).train()
    before, config = weights(twin), twin.config.to_dict()
    distill(make_student(twin, "layers=2"), twin, splits(), Distillation(max_steps=3, objective="response,feature"))
    assert twin.config.to_dict() == config
    assert twin.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in twin.parameters())
    for name, tensor in weights(twin).items():
        assert torch.equal(tensor, before[name]), name


def test_nothing_of_the_objectives_is_left_on_the_student(teacher):
    student = bert(hidden_size=16)
    names = set(student.state_dict())
    result = distill(student, teacher, splits(), Distillation(max_steps=3, objective="response,feature"))
    assert result.model is student
    assert set(student.state_dict()) == names
    assert not student._forward_hooks
    assert not student.training
    (entry,) = checkpoint.history(student)
    assert entry["verb"] == "distill"
    assert entry["config"]["objective"] == {
        "response": {"weight": 1.0, "temperature": 2.0},
        "feature": {"weight": 1.0, "layer_mapping": "uniform"},
    }
    assert entry["summary"]["steps"] == 3
    assert getattr(student.config, "quantization_config", None) is None


def test_nothing_is_left_after_an_error_either(teacher):
    student = bert(hidden_size=16)
    loader = DataLoader(list(range(8)), batch_size=2, collate_fn=_collate_then_fail(sentences(8)))
    with pytest.raises(RuntimeError, match="no more"):
        distill(student, teacher, loader, Distillation(objective="feature"))
    assert not student._forward_hooks
    assert "distillation_objectives" not in dict(student.named_children())


def _collate_then_fail(rows):
    calls = []

    def collate(items):
        calls.append(items)
        if len(calls) > 3:
            raise RuntimeError("no more")
        return Padding(0)([rows[i] for i in items])

    return collate


def _gradients(monkeypatch, student, teacher, data, **settings):
    found = {}

    def keep(self, args, state, control, model=None, **kwargs):
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(Epochs, "on_pre_optimizer_step", keep)
    result = distill(student, teacher, data, Distillation(max_steps=1, max_grad_norm=0, log_every=1, **settings))
    return found, result.loss


def test_gradients_reach_the_projections(monkeypatch, teacher):
    student = bert(hidden_size=16, num_hidden_layers=2)
    found, _ = _gradients(monkeypatch, student, teacher, splits(), objective="response,feature")
    projections = {name: g for name, g in found.items() if "projections" in name and name.endswith("weight")}
    assert len(projections) == 3
    assert all(gradient.abs().sum() > 0 for gradient in projections.values())
    assert found["bert.embeddings.word_embeddings.weight"].abs().sum() > 0


@pytest.mark.parametrize("objective", ["response", "feature", "response,feature"])
def test_accumulation_equals_a_large_batch(objective, monkeypatch, teacher):
    found = {}
    for name, sizes in (("large", {"batch_size": 16}), ("small", {"batch_size": 4, "gradient_accumulation": 4})):
        student = bert(dropout=0.0, hidden_size=16)
        found[name] = _gradients(monkeypatch, student, teacher, sentences(16), objective=objective, **sizes)
    assert found["small"][1] == pytest.approx(found["large"][1], rel=1e-4)
    for name, gradient in found["large"][0].items():
        torch.testing.assert_close(found["small"][0][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("objective", "labels"),
    [
        ("response", False),
        ("logit_mse", False),
        ("feature", True),
        ("relation", True),
        ("response,feature", False),
        ("dkd,cosine", True),
    ],
)
def test_accumulation_equals_a_large_batch_for_language_models(objective, labels, monkeypatch):
    """Rows of very different lengths: means over tokens and means over examples have shares of their own."""
    rows = sentences(8, shortest=2, longest=30)
    rows = rows.remove_columns("labels")
    if labels:
        rows = rows.add_column("labels", list(rows["input_ids"]))
    found = {}
    for name, sizes in (("large", {"batch_size": 8}), ("small", {"batch_size": 2, "gradient_accumulation": 4})):
        settings = {"objective": objective, "alpha": 0.5 if labels else 1, "group_by_length": False, **sizes}
        found[name] = _gradients(monkeypatch, _gpt2(0, layers=1), _gpt2(1, layers=2), rows, **settings)
    assert found["small"][1] == pytest.approx(found["large"][1], rel=1e-4)
    for name, gradient in found["large"][0].items():
        torch.testing.assert_close(found["small"][0][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def _gpt2(seed, layers):
    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": layers, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes)
    return transformers.GPT2LMHeadModel(config)


def test_alpha_zero_is_training_alone(teacher):
    alone, taught = bert(dropout=0.0), bert(dropout=0.0)
    settings = {"max_steps": 4, "batch_size": 16, "learning_rate": 1e-3}
    train(alone, splits(), Training(**settings))
    passes: list[int] = []
    handle = teacher.register_forward_pre_hook(lambda *_: passes.append(1))
    distill(taught, teacher, splits(), Distillation(**settings, alpha=0, objective="response,feature"))
    handle.remove()
    assert_same_weights(alone, taught)
    assert len(passes) == 1, "to see that the models fit; no step asks the teacher"


def test_alpha_one_does_not_look_at_the_labels(teacher):
    results = []
    for flipped in (False, True):
        rows = sentences(48)
        labels = [1 - label if flipped else label for label in rows["labels"]]
        student = bert()
        rows = Dataset.from_dict({"input_ids": rows["input_ids"], "labels": labels})
        distill(student, teacher, rows, Distillation(max_steps=4, alpha=1))
        results.append(student)
    assert_same_weights(*results)


def test_data_without_labels(teacher):
    data = {split: rows.remove_columns("labels") for split, rows in splits().items()}
    student = make_student(teacher, "layers=1")
    result = distill(student, teacher, data, Distillation(epochs=3, batch_size=16, learning_rate=1e-3))
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    expected = soft_divergence(_logits(student, data["validation"]), _logits(teacher, data["validation"]), 2.0)
    assert losses[-1] == pytest.approx(expected.item(), rel=1e-2)
    with pytest.raises(UsageError, match=r"alpha 0\.5 leaves a part of the loss to labels"):
        distill(student, teacher, data, Distillation(max_steps=1, alpha=0.5))


def test_validation_data_without_labels(teacher):
    data = splits(32, 8)
    data["validation"] = data["validation"].remove_columns("labels")
    with pytest.raises(UsageError, match="the validation data has no labels"):
        distill(bert(), teacher, data, Distillation(max_steps=1))
    assert distill(bert(), teacher, data, Distillation(max_steps=1, alpha=1)).history[-1]["eval_loss"] > 0


def test_texts_that_the_teacher_cannot_read():
    teacher = bert(max_position_embeddings=8)
    with pytest.raises(
        UsageError, match=r"an input of 12 tokens, .* and the teacher takes 8: set the task's max_length"
    ):
        distill(bert(), teacher, sentences(32), Distillation(max_steps=1))


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "base-decoder"])
def test_pkd_in_a_causal_stack(family):
    family = next(entry for entry in FAMILIES if entry.name == family)
    teacher = family.model()
    with pytest.raises(UsageError, match="first tokens, which have seen nothing in a causal stack"):
        distill(make_student(teacher, 1), teacher, _rows_of(family.inputs()), Distillation(objective="pkd", alpha=1))


def test_batches_of_a_dataloader(teacher):
    rows = sentences(32)
    loader = DataLoader([rows[i] for i in range(32)], batch_size=8, shuffle=True, collate_fn=Padding(0))
    assert distill(bert(), teacher, loader, Distillation(epochs=1)).steps == 4


def test_weights_of_objectives_scale_their_losses(teacher):
    losses = {}
    for objective in ({"response": 1}, {"feature": 1}, {"response": 2, "feature": 0.5}):
        student = bert(dropout=0.0)
        config = Distillation(max_steps=1, objective=objective, alpha=1, log_every=1)
        losses[tuple(objective)] = distill(student, teacher, sentences(32), config).loss
    combined = 2 * losses["response",] + 0.5 * losses["feature",]
    assert losses["response", "feature"] == pytest.approx(combined, rel=1e-4)


def test_bf16_is_near_to_fp32(teacher):
    losses = {}
    for precision in ("fp32", "bf16"):
        config = Distillation(max_steps=5, precision=precision, objective="response,feature", learning_rate=1e-3)
        losses[precision] = distill(bert(dropout=0.0, hidden_size=16), teacher, splits(), config).loss
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_gradient_checkpointing_changes_nothing(teacher):
    students = {}
    for recompute in (False, True):
        students[recompute] = bert(dropout=0.0, hidden_size=16)
        config = Distillation(max_steps=3, objective="response,feature", gradient_checkpointing=recompute)
        distill(students[recompute], teacher, splits(), config)
    for name, tensor in weights(students[True]).items():
        torch.testing.assert_close(tensor, weights(students[False])[name], rtol=1e-4, atol=1e-6, msg=name)


def _rows_of(batch) -> Dataset:
    return Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()})


ALWAYS = {"bert", "distilbert", "roberta", "gpt2", "llama", "vit", "t5", "base-decoder", "base-seq2seq"}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=() if f.name in ALWAYS else pytest.mark.slow) for f in FAMILIES],
)
def test_every_family_shallower_and_pruned(family):
    teacher = family.model()
    student = make_student(teacher, "layers=2")
    prune(student, Pruning(heads=0.5, ffn=0.5), inplace=True)
    before = weights(student)
    config = Distillation(max_steps=12, batch_size=3, objective="response,feature", learning_rate=3e-3, log_every=1,
                          warmup_ratio=0)  # fmt: skip
    result = distill(student, teacher, _rows_of(family.inputs()), config)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert min(losses[-3:]) < losses[0]
    assert {name for name, tensor in weights(student).items() if not torch.equal(tensor, before[name])}
    assert checkpoint.history(student)[-1]["verb"] == "distill"


def test_answer_spans():
    def model(**changes):
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **{**SIZES, **changes})
        return transformers.BertForQuestionAnswering(config)

    rows = sentences(24)
    rows = Dataset.from_dict(
        {
            "input_ids": rows["input_ids"],
            "start_positions": [0] * 24,
            "end_positions": [len(ids) - 1 for ids in rows["input_ids"]],
        }
    )
    config = Distillation(epochs=6, batch_size=8, learning_rate=3e-3, objective="response,feature", log_every=1)
    result = distill(model(), model(num_hidden_layers=3), rows, config)
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < losses[0]


def test_another_family_with_other_inputs(tmp_path):
    """A DistilBERT that learns from a BERT: only the teacher reads which of two sentences a token belongs to."""
    from effitrans import load_task
    from effitrans.tasks import build_processor

    words = ["red", "green", "blue", "yellow", "black", "white"]
    lines = ["sentence1,sentence2,label"]
    lines += [f"{words[i % 6]} {words[i % 5]},{words[(i * i) % 6]},{int(i % 6 == i * i % 6)}" for i in range(48)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    task = load_task(
        {
            "name": "pairs", "kind": "sequence-classification", "data": {"train": str(tmp_path / "pairs.csv")},
            "inputs": ["sentence1", "sentence2"], "target": "label", "tokenizer": {"method": "words"},
        }
    )  # fmt: skip
    tokenizer = build_processor(task)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "num_labels": 2}
    teacher = transformers.BertForSequenceClassification(transformers.BertConfig(**size, **SIZES))
    student = transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(**size, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    )
    seen = []
    teacher.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    config = Distillation(max_steps=3, batch_size=8, objective="response,feature")
    distill(student, teacher, task, config, processor=tokenizer)
    assert all("token_type_ids" in names for names in seen)
    assert len(seen) == 4


NEED_VECTORS = {"sentence_embedding"}
CLASSIFY = [name for name in OBJECTIVES if name not in NEED_VECTORS]


@pytest.mark.parametrize("objective", CLASSIFY)
def test_every_objective_teaches_a_narrower_student_with_other_heads(objective, teacher):
    student = bert(hidden_size=24, num_attention_heads=3, num_hidden_layers=2)
    config = Distillation(epochs=3, batch_size=16, learning_rate=3e-3, objective={objective: 1.0}, alpha=1, log_every=6)
    before = student.config._attn_implementation
    losses = [entry["loss"] for entry in distill(student, teacher, sentences(96), config).history]
    assert losses[-1] < 0.9 * losses[0]
    assert student.config._attn_implementation == teacher.config._attn_implementation == before


@pytest.mark.parametrize("objective", [name for name in CLASSIFY if name not in ("response", "feature", "rkd")])
def test_every_objective_is_a_mean_over_examples(objective, monkeypatch, teacher):
    found = {}
    for name, sizes in (("large", {"batch_size": 16}), ("small", {"batch_size": 4, "gradient_accumulation": 4})):
        student = bert(dropout=0.0, hidden_size=16)
        found[name] = _gradients(monkeypatch, student, teacher, sentences(16), objective={objective: 1.0}, **sizes)
    for name, gradient in found["large"][0].items():
        torch.testing.assert_close(found["small"][0][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "base-seq2seq", "vit", "distilbert"])
def test_relations_in_every_form(family):
    family = next(entry for entry in FAMILIES if entry.name == family)
    teacher = family.model()
    student = prune(make_student(teacher, "layers=2"), Pruning(heads=0.5))
    objective = {"attention": 1.0, "relation": 1.0, "rkd": 1.0}
    config = Distillation(max_steps=8, batch_size=3, objective=objective, learning_rate=3e-3, log_every=1,
                          warmup_ratio=0, gradient_checkpointing=family.name == "gpt2")  # fmt: skip
    if family not in THROUGH_INTERFACE:
        with pytest.raises(UsageError, match="computes attention by itself"):
            distill(student, teacher, _rows_of(family.inputs()), config)
        return
    result = distill(student, teacher, _rows_of(family.inputs()), config)
    losses = [entry["loss"] for entry in result.history]
    assert min(losses[-2:]) < losses[0]


def test_recomputed_activations_give_the_same_relations(teacher):
    students = {}
    for recompute in (False, True):
        students[recompute] = bert(dropout=0.0, hidden_size=16)
        objective = {"attention": 1.0, "relation": 1.0}
        config = Distillation(max_steps=3, objective=objective, gradient_checkpointing=recompute)
        distill(students[recompute], teacher, splits(), config)
    for name, tensor in weights(students[True]).items():
        torch.testing.assert_close(tensor, weights(students[False])[name], rtol=1e-4, atol=1e-6, msg=name)


def test_alpha_goes_to_its_end(monkeypatch, teacher):
    seen = []
    original = DistillationLoss.hook

    def hook(self, *args):
        if self.inputs is not None:
            seen.append(self.share)
        return original(self, *args)

    monkeypatch.setattr(DistillationLoss, "hook", hook)
    config = Distillation(max_steps=5, alpha=1, alpha_end=0.2)
    distill(bert(), teacher, splits(), config)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    with pytest.raises(UsageError, match=r"alpha_end 0\.2 leaves a part of the loss to labels"):
        distill(bert(), teacher, sentences(8).remove_columns("labels"), config)


def test_embedding_tasks(tmp_path):
    from effitrans import load_task
    from effitrans.tasks import build_processor

    words = ["red", "green", "blue", "yellow", "black", "white"]
    lines = ["a,b,score"] + [f"{words[i % 6]} {words[i % 5]},{words[i * i % 6]},{i % 6 / 5}" for i in range(48)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    file = str(tmp_path / "pairs.csv")
    task = load_task(
        {
            "name": "pairs", "kind": "embedding", "data": {"train": file, "validation": file},
            "inputs": ["a", "b"], "target": "score", "tokenizer": {"method": "words"},
        }
    )  # fmt: skip
    tokenizer = build_processor(task)
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    teacher = transformers.BertModel(transformers.BertConfig(**size, **{**SIZES, "num_hidden_layers": 3}))
    torch.manual_seed(1)
    student = transformers.BertModel(transformers.BertConfig(**size, **{**SIZES, "hidden_size": 16}))
    settings = {"batch_size": 8, "epochs": 6, "learning_rate": 3e-3, "log_every": 6}
    config = Distillation(**settings, objective="response,feature,rkd", alpha=0.7)
    result = distill(student, teacher, task, config, processor=tokenizer)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert all("eval_loss" in entry for entry in result.history if "loss" not in entry)


@pytest.mark.parametrize("kind", ["sequence-classification", "regression", "embedding"])
@pytest.mark.parametrize("cache", [False, True])
def test_another_tokenizer_for_whole_texts(kind, cache, tmp_path, monkeypatch):
    """Each model reads the tokens of its own tokenizer, of which the teacher's makes more."""
    from effitrans import load_task
    from effitrans.tasks import build_processor

    monkeypatch.setenv("EFFITRANS_CACHE", str(tmp_path / "caches"))
    words = ["red", "green", "blue", "yellow", "black", "white"]
    lines = ["a,b,target"] + [f"{words[i % 6]} {words[i % 5]},{words[i * i % 6]},{i % 2}" for i in range(48)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    values = {
        "name": "rows", "kind": kind, "data": {"train": str(tmp_path / "rows.csv")}, "target": "target",
        "inputs": ["a", "b"] if kind == "embedding" else "a",
    }  # fmt: skip
    task, of_bytes = (load_task({**values, "tokenizer": {"method": method}}) for method in ("words", "bytes"))
    processors = [build_processor(task), build_processor(of_bytes)]
    models = []
    for seed, processor in enumerate(processors):
        torch.manual_seed(seed)
        config = transformers.BertConfig(vocab_size=len(processor), max_position_embeddings=64, **SIZES)
        config.update({} if kind == "embedding" else {"num_labels": 1 if kind == "regression" else 2})
        models.append(
            (transformers.BertModel if kind == "embedding" else transformers.BertForSequenceClassification)(config)
        )
    student, teacher = models
    seen = []
    teacher.register_forward_pre_hook(lambda module, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    settings = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "log_every": 6, "alpha": 1}
    objective = {"response": 1.0} if cache else {"response": 1.0, "rkd": 1.0}
    config = Distillation(**settings, objective=objective, cache=cache)
    result = distill(student, teacher, task, config, processor=processors[0], teacher_processor=processors[1])
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < 0.9 * losses[0]
    text = processors[1](f"{words[0]} {words[0]}")["input_ids"]
    assert seen[0][0, : len(text)].tolist() == text
    assert len(text) > len(processors[0](f"{words[0]} {words[0]}")["input_ids"])
    config = Distillation(max_steps=1, objective={"feature": 1.0})
    with pytest.raises(UsageError, match=r"different tokenizers.*compare whole texts"):
        distill(student, teacher, task, config, processor=processors[0], teacher_processor=processors[1])


@pytest.mark.parametrize("objective", ["response", "logit_mse"])
@pytest.mark.parametrize(
    "head",
    [{"num_labels": 3, "problem_type": "multi_label_classification"}, {"num_labels": 1}],
    ids=["labels", "score"],
)
def test_a_student_takes_the_problem_type_of_its_teacher(head, objective):
    """Without labels: outputs that are all too large are nothing to a choice of one class, and everything here."""
    teacher, rows = bert(dropout=0.0, **head), sentences(32).remove_columns("labels")
    student = bert(dropout=0.0, num_labels=head["num_labels"])
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student.classifier.bias += 3
    distill(student, teacher, rows, Distillation(max_steps=40, batch_size=16, learning_rate=0.1, objective=objective))
    assert (_logits(student, rows) - _logits(teacher, rows)).abs().max() < 1
    assert student.config.problem_type == head.get("problem_type", student.config.problem_type)


def test_a_teacher_of_several_labels_is_refused_for_a_task_of_classes(tmp_path, tiny_tokenizer):
    from tests.tasks.cases import CASES, make_model

    task = CASES["sequence-classification"].task(tmp_path)
    student, teacher = (make_model("bert", task, tiny_tokenizer, seed) for seed in range(2))
    student.config.problem_type, teacher.config.problem_type = None, "multi_label_classification"
    with pytest.raises(UsageError, match="problem_type multi_label_classification, and task"):
        distill(student, teacher, task, processor=tiny_tokenizer)
