"""An option that nothing will read is refused, before anything is loaded."""

import pytest

DISTILL = "distill --teacher MODEL --student layers=1 --task TASK -o OUT"

PRUNE = "prune MODEL --task TASK -o OUT"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --model MODEL --task TASK -o OUT --epochs 2 --max-steps 5", "--epochs: no effect beside --max-steps"),
        (f"{DISTILL} --epochs 2 --max-steps 5", "--epochs: no effect beside --max-steps"),
        ("linearize MODEL --task TASK -o OUT --epochs 2 --max-steps 5", "--epochs: no effect beside --max-steps"),
        ("compare attention --task TASK -o OUT --epochs 2 --max-steps 5", "--epochs: no effect beside --max-steps"),
        ("compare attention --task TASK -o OUT --lengths none --repeats 2", "--repeats: no effect with --lengths none"),
        ("compare recipes STUDY -o OUT --resume --overwrite", "--overwrite: no effect beside --resume"),
        ("compare models MODEL --task TASK -o OUT --gate accuracy>=0.9", "--gate: no effect with one model"),
        ("compare models MODEL MODEL -t TASK -o OUT --no-cost --optimize", "--optimize: no effect with --no-cost"),
        ("run quickstart -o OUT --resume --overwrite", "--overwrite: no effect beside --resume"),
        ("run quickstart -o OUT --rescore --overwrite", "--overwrite: no effect beside --resume and --rescore"),
        ("quantize MODEL -o OUT --split validation", "--split: no effect without --task, leave it out"),
        (
            "quantize MODEL -o OUT --no-optimize --seed 7",
            "--seed, --no-optimize: no effect without --task, leave them out",
        ),
        (f"{PRUNE} --heads 0.5 --schedule cubic", "--schedule: no effect without --steps above 1"),
        (f"{PRUNE} --heads 0.5 --sampler tpe", "--sampler: no effect without a budget such as --latency"),
        (f"{PRUNE} --sparsity 0.5 --steps 3", "--steps: no effect without --heads, --ffn and the like"),
        (f"{PRUNE} --latency 0.5 --steps 3", "--steps: no effect without --heads, --ffn and the like"),
        (f"{PRUNE} --latency 0.5 --scope global", "--scope: no effect where nothing is ranked"),
        (f"{PRUNE} --method l0 --heads 0.5 --scope global", "--scope: no effect where nothing is ranked"),
        (f"{PRUNE} --heads 0.5 --lr 1e-3", "--learning-rate: no effect without --recover"),
        (f"{PRUNE} --vocab sst2 --method taylor", "--method: no effect with --vocab alone"),
        ("swap MODEL --attention local -o OUT --epochs 3", "--epochs: no effect without --heal TASK"),
        ("swap MODEL --attention local -o OUT --limit 3", "--limit: no effect without --dry-run"),
        ("swap MODEL --attention local --task TASK --dry-run --overwrite", "--overwrite: no effect with --dry-run"),
        ("eval MODEL --task TASK --no-cost --no-optimize", "--no-optimize: no effect with --no-cost"),
        (f"{DISTILL} --no-cost --optimize", "--optimize: no effect with --no-cost"),
        ("quantize MODEL -o OUT --no-cost", "--no-cost: no effect without --task"),
        ("swap MODEL --attention local -o OUT --no-cost", "--no-cost: no effect without --heal TASK"),
        ("export MODEL -o OUT --limit 3", "--limit: no effect without --task"),
        ("inspect MODEL -o OUT", "--output: no effect without --attention"),
        ("inspect MODEL --attention text --json", "--json: no effect with --attention"),
        ("report --index MODEL --latex", "--latex: no effect with --index"),
        ("report --index MODEL -o OUT", "--output: no effect with --index"),
    ],
    ids=lambda text: text.split(":")[0] if ": no effect" in text else " ".join(text.split()[:2]),
)
def test_options_that_nothing_reads(effitrans, tmp_path, command, message):
    outcome = effitrans(*command.replace("OUT", str(tmp_path / "out")).split())
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()
