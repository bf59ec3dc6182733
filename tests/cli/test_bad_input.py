"""A user's mistake: exit code 2, one clear message with a remedy, nothing written, no traceback."""

import json
from pathlib import Path

import pytest
import torch


def refused(outcome, *fragments: str) -> None:
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    text = " ".join(outcome.err.split())
    for fragment in fragments:
        assert fragment in text, text


@pytest.fixture
def nothing_written(tmp_path: Path):
    """The folder in which a refused command must leave nothing."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    yield folder / "result"
    assert [path.name for path in folder.iterdir() if path.name != "result.partial"] == []


def test_folder_that_is_no_model(effitrans, tmp_path, tiny_task, nothing_written):
    refused(
        effitrans("prune", tmp_path, "--task", tiny_task, "--heads", 0.5, "--output", nothing_written), "no config.json"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "MODEL", "--task", "TASK"],
        ["eval", "TEACHER", "--task", "TASK", "--baseline", "MODEL"],
        ["train", "--model", "MODEL", "--task", "TASK", "-o", "OUT"],
        ["distill", "--teacher", "MODEL", "--student", "layers=2", "--task", "TASK", "-o", "OUT"],
        ["distill", "--teacher", "TEACHER", "--student", "MODEL", "--task", "TASK", "-o", "OUT"],
        ["prune", "MODEL", "--task", "TASK", "--heads", "0.5", "-o", "OUT"],
        ["quantize", "MODEL", "-o", "OUT"],
        ["swap", "MODEL", "--attention", "local", "-o", "OUT"],
        ["inspect", "MODEL"],
        ["inspect", "MODEL", "--attention", "a film"],
        ["compare", "models", "TEACHER", "MODEL", "--task", "TASK", "-o", "OUT"],
    ],
    ids=lambda arguments: "-".join(arguments[:3]),
)
@pytest.mark.parametrize("missing", ["./nothing", "nothing"])
def test_a_model_that_is_not_there(effitrans, tiny_teacher, tiny_task, nothing_written, arguments, missing):
    places = {"MODEL": missing, "TEACHER": tiny_teacher, "TASK": tiny_task, "OUT": nothing_written}
    refused(effitrans(*(places.get(argument, argument) for argument in arguments)), f"model '{missing}'", "no folder")


def test_a_model_without_a_head_is_not_scored(
    effitrans, tiny_tokenizer, tiny_teacher, tiny_task, tmp_path, nothing_written
):
    from transformers import BertModel

    encoder = tmp_path / "encoder"
    BertModel.from_pretrained(tiny_teacher).save_pretrained(encoder)
    tiny_tokenizer.save_pretrained(encoder)
    for arguments in (["eval", encoder], ["prune", encoder, "--heads", 0.5, "--output", nothing_written]):
        refused(effitrans(*arguments, "--task", tiny_task), "no head", "effitrans train")


def test_pickle_checkpoint(effitrans, tmp_path, tiny_task, nothing_written):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    torch.save({}, folder / "pytorch_model.bin")
    refused(effitrans("quantize", folder, "--output", nothing_written), "pickled weights", "safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["eval", "MODEL", "--task", "digit"], "did you mean 'digits'?", id="task"),
        pytest.param(["quantize", "MODEL", "-o", "OUT", "--scheme", "int8-dynamc"], "'int8-dynamic'", id="scheme"),
        pytest.param(
            ["prune", "MODEL", "--task", "TASK", "-o", "OUT", "--heads", "1.5"], "heads", id="ratio-above-one"
        ),
        pytest.param(["prune", "MODEL", "--task", "TASK", "-o", "OUT", "--ffn", "-0.1"], "ffn", id="ratio-below-zero"),
        pytest.param(
            ["prune", "MODEL", "--task", "TASK", "-o", "OUT", "--heads", "1.0"], "layer", id="every-head-of-a-layer"
        ),
        pytest.param(
            ["prune", "MODEL", "--task", "TASK", "-o", "OUT", "--heads", "0.5", "--method", "tailor"],
            "'taylor'",
            id="method",
        ),
        pytest.param(["prune", "MODEL", "--task", "TASK", "-o", "OUT"], "nothing", id="nothing-to-prune"),
        pytest.param(
            ["distill", "--teacher", "MODEL", "--student", "layers=9", "--task", "TASK", "-o", "OUT"],
            "layers",
            id="more-layers-than-the-teacher",
        ),
        pytest.param(
            [
                "distill",
                "--teacher",
                "MODEL",
                "--student",
                "layers=2",
                "--task",
                "TASK",
                "-o",
                "OUT",
                "--objective",
                "respnse",
            ],
            "'response'",
            id="objective",
        ),
        pytest.param(["swap", "MODEL", "--attention", "locl", "-o", "OUT"], "'local'", id="operator"),
        pytest.param(["run", "quickstrt", "-o", "OUT"], "'quickstart'", id="recipe"),
        pytest.param(
            ["train", "--model", "MODEL", "--task", "TASK", "-o", "OUT", "--set", "a=1"], "--model base", id="set"
        ),
        pytest.param(
            ["train", "--model", "base:hiden_size=8", "--task", "TASK", "-o", "OUT"], "'hidden_size'", id="base-setting"
        ),
    ],
)
def test_names_and_values(effitrans, tiny_teacher, tiny_task, nothing_written, arguments, message):
    places = {"MODEL": tiny_teacher, "TASK": tiny_task, "OUT": nothing_written}
    refused(effitrans(*(places.get(argument, argument) for argument in arguments)), message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("inputs: sentence", "inputs: sentense", "'sentence'", id="column"),
        pytest.param("metrics: [accuracy]", "metrics: [acuracy]", "'accuracy'", id="metric"),
        pytest.param("kind: sequence-", "kind: sequense-", "'sequence-classification'", id="kind"),
        pytest.param("target: label", "target: label\nlabls: [a]", "'labels'", id="key"),
    ],
)
def test_task_file(effitrans, tiny_teacher, tiny_task, old, new, message):
    tiny_task.write_text(tiny_task.read_text().replace(old, new))
    refused(effitrans("eval", tiny_teacher, "--task", tiny_task, "--no-cost"), message)


@pytest.mark.parametrize("command", [["run"], ["compare", "recipes"]], ids=["run", "study"])
def test_dry_runs_check_what_can_be_known(effitrans, tiny_task, tiny_teacher, tmp_path, nothing_written, command):
    job = {"name": "tiny", "task": str(tiny_task), "model": str(tiny_teacher)}
    steps = [{"train": {}}, {"distill": {"student": "layers=9"}}]
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({**job, "steps": steps} if command == ["run"] else {**job, "variants": {"a": steps}}))
    outcome = effitrans(*command, file, "--output", nothing_written, "--dry-run")
    refused(outcome, "step 2 (distill)", "layers")


def test_models_are_looked_for_before_one_is_timed(effitrans, tiny_task, tiny_teacher, nothing_written, monkeypatch):
    monkeypatch.setattr("effitrans.evaluation.evaluate", None)
    outcome = effitrans("compare", "models", tiny_teacher, "/gone", "--task", tiny_task, "--output", nothing_written)
    refused(outcome, "/gone")


def test_labels_that_do_not_fit_the_head(effitrans, tiny_teacher, tiny_task):
    file = tiny_task.parent / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for folder_file in tiny_task.parent.glob("*.jsonl"):
        folder_file.write_text("\n".join(json.dumps({**row, "label": i % 3}) for i, row in enumerate(rows)))
    refused(effitrans("eval", tiny_teacher, "--task", tiny_task, "--no-cost"), "labels")


def test_empty_data_set(effitrans, tiny_teacher, tiny_task, nothing_written):
    (tiny_task.parent / "train.jsonl").write_text("")
    outcome = effitrans("train", "--model", tiny_teacher, "--task", tiny_task, "--output", nothing_written)
    refused(outcome, "empty")


def test_student_with_another_tokenizer(effitrans, tiny_teacher, tiny_task, tmp_path, nothing_written):
    from transformers import BertConfig, BertForSequenceClassification, ByT5Tokenizer

    student = tmp_path / "student"
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForSequenceClassification(config).save_pretrained(student)
    ByT5Tokenizer().save_pretrained(student)
    outcome = effitrans(
        "distill", "--teacher", tiny_teacher, "--student", student, "--task", tiny_task, "--output", nothing_written
    )
    refused(outcome, "tokenizer")


def test_architecture_without_an_adapter(effitrans, tiny_task, tiny_tokenizer, tmp_path, nothing_written):
    from transformers import AlbertConfig, AlbertForSequenceClassification

    folder = tmp_path / "albert"
    config = AlbertConfig(
        vocab_size=len(tiny_tokenizer), embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16
    )
    AlbertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    outcome = effitrans("prune", folder, "--task", tiny_task, "--heads", 0.5, "--output", nothing_written)
    refused(outcome, "albert", "bert", "gpt2", "llama")


def test_output_folder_in_the_way(effitrans, tiny_teacher, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep.txt").write_text("mine")
    refused(effitrans("quantize", tiny_teacher, "--output", tmp_path / "full"), "not empty", "--overwrite")
    assert (tmp_path / "full" / "keep.txt").read_text() == "mine"


def test_quantizing_and_training_in_the_wrong_order(effitrans, tiny_teacher, tiny_task, tmp_path):
    assert effitrans("quantize", tiny_teacher, "--output", tmp_path / "int8").code == 0
    refused(effitrans("quantize", tmp_path / "int8", "--output", tmp_path / "twice"), "already")
    refused(
        effitrans("train", "--model", tmp_path / "int8", "--task", tiny_task, "--output", tmp_path / "trained"),
        "quantize last",
    )
    refused(
        effitrans("prune", tmp_path / "int8", "--task", tiny_task, "--heads", 0.5, "--output", tmp_path / "pruned"),
        "quantize",
    )


def test_unknown_option_and_missing_option_are_usage_errors(effitrans):
    assert effitrans("prune", "x", "--tsk", "y").code == 2
    assert effitrans("train", "--task", "digits").code == 2
