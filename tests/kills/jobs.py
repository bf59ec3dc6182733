"""What is killed: tiny runs of every kind that can be resumed, and what must be the same of their results.

A job takes a folder, goes on from what it finds there, and leaves `result` in it. It reads no cache but its own in
`cache`, and its data from beside the folder, so that all runs of a job name the same task.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from effitrans import checkpoint
from effitrans.checkpoint import load_model
from effitrans.recipes import run
from tests.conftest import WORDS

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_every": 2}
COST = {
    "batches": [1],
    "lengths": [8],
    "min_repeats": 2,
    "min_seconds": 0,
    "warmup": 1,
    "memory": False,
    "flops": False,
    "threads": 1,
}
MODEL = {"base": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}}


def passes(folder: Path) -> None:
    """A recipe of the passes that shrink a model."""
    shallow = {"student": "layers=1", **TRAINING}
    pruned = {"heads": 0.5, "ffn": 0.5, "steps": 2, "recover": 1.0}
    _recipe(
        folder, [{"train": TRAINING}, {"distill": shallow}, {"prune": pruned}, {"quantize": {"scheme": "int8-dynamic"}}]
    )


def swapped(folder: Path) -> None:
    """A recipe that swaps the attention, prunes what was trained so, and rounds with calibration."""
    steps = [
        {"swap": {"attention": "local", "window": 4}},
        {"train": TRAINING},
        {"prune": {"ffn": 0.5, "method": "taylor"}},
        {"quantize": {"scheme": "gptq", "bits": 4, "group_size": 8}},
    ]
    _recipe(folder, steps)


def search(folder: Path) -> None:
    """A search for a structure, which is then trained."""
    sizes = {"parameters": 0.8, "evaluations": 16, "population": 4, "widths": 4, "calibration_examples": 16}
    _recipe(folder, [{"search": {**sizes, "scored_examples": 16}}, {"train": TRAINING}])


def cache(folder: Path) -> None:
    """Distillation from the outputs of a teacher that are kept on disk, hidden states too."""
    kept = {"cache": True, "objective": "response,feature"}
    _recipe(folder, [{"distill": {"student": "layers=1", **kept, **TRAINING}}])


def conversion(folder: Path) -> None:
    """Softmax attention turned into linear attention: transfer, then distillation."""
    _recipe(folder, [{"linearize": {"attention": "linear", **TRAINING}}])


def saving(folder: Path) -> None:
    """A model saved over another, several times."""
    for seed in range(5):
        checkpoint.save(small_model(seed), folder / "result" / "model", overwrite=True)


def small_model(seed: int) -> Any:
    """A base Transformer whose weights the seed decides."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    return AutoModel.from_config(AutoConfig.for_model("effitrans", vocab_size=40, **MODEL["base"]))


JOBS: dict[str, Callable[[Path], None]] = {
    "passes": passes,
    "swapped": swapped,
    "search": search,
    "cache": cache,
    "conversion": conversion,
    "saving": saving,
}
"""Name -> job."""


def _recipe(folder: Path, steps: list[dict[str, Any]]) -> None:
    recipe = {
        "name": "tiny",
        "task": str(_task(folder.parent / "data")),
        "model": MODEL,
        "threads": 1,
        "steps": steps,
        "evaluate": {"cost": COST},
    }
    run(recipe, folder / "result", resume=True)


def _task(folder: Path) -> Path:
    """Sentences of words that say their label."""
    file = folder / "task.yaml"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        for split, rows in (("train", 48), ("validation", 16), ("test", 16)):
            lines = []
            for row in range(rows):
                picks = torch.randint(0, 3, (2 + row % 6,), generator=generator).tolist()
                words = [WORDS[2 * pick + row % 2] for pick in picks]
                lines.append(json.dumps({"sentence": " ".join(words), "label": row % 2}))
            (folder / f"{split}.jsonl").write_text("\n".join(lines))
        file.write_text(
            "name: words\nkind: sequence-classification\n"
            "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
            "inputs: sentence\ntarget: label\nmetrics: [accuracy]\n"
        )
    return file


def do(name: str, folder: Path) -> None:
    """Do a job in this process, with caches of its own."""
    import datasets

    os.environ["EFFITRANS_CACHE"] = str(folder / "cache")
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    torch.set_num_threads(1)
    JOBS[name](folder)


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished job left, by its place in the folder: weights and records, without what measures time."""
    result = folder / "result"
    found: dict[str, Any] = {}
    for path in sorted(result.rglob("*")):
        place = str(path.relative_to(result))
        if path.suffix == ".safetensors":
            found[place] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".json" and (path.parent.name == "records" or path.name == "record.json"):
            found[place] = _settled(json.loads(path.read_text()))
        elif path.is_file():
            found[place] = None
    return found


def _settled(record: dict[str, Any]) -> dict[str, Any]:
    cost = {name: value for name, value in record["cost"].items() if name not in ("latency", "throughput", "load_s")}
    origin = {name: value for name, value in record["provenance"].items() if name != "created"}
    kept = {name: value for name, value in record.items() if name != "notes"}
    return {**kept, "cost": cost, "provenance": origin}


def check_whole(folder: Path) -> None:
    """Whatever a kill left, a folder that has the name of a model is one."""
    for config in (folder / "result").glob("**/config.json"):
        hidden = any(part.startswith(".") for part in config.relative_to(folder).parts)
        if not hidden and "checkpoints" not in config.parts:
            load_model(config.parent, None)
