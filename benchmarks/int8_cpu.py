"""Int8 inference on the CPU against what else there is, in one interleaved run on real text.

    python benchmarks/int8_cpu.py                                     # all sides that are installed, all shapes
    python benchmarks/int8_cpu.py --model runs/sst2 --sides fp32,int8-dynamic,onnxruntime --batches 1,8
    python benchmarks/int8_cpu.py --output reports/quantization/int8_cpu.json

Every side is checked at every shape before anything is timed: the relative L2 error of the last hidden state, padding
left out, against fp32 on the very batches that are timed. A side that is further off than `WRONG` is named and not
timed. A ratio is the time of fp32 over the side's, the median over rounds with its 95 % interval. Sides take turns by
whole rounds, with a pause in which the threads of one library stop spinning before the next begins. Sides whose library
is not installed are named. Standard output holds the tables; `--output FILE` keeps records with the raw samples.
"""

import argparse
import copy
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import onnxruntime_dynamic
from torch import Tensor, nn

import effitrans
from effitrans.checkpoint import require_model
from effitrans.evaluation.provenance import provenance
from effitrans.evaluation.statistics import ratio_interval
from effitrans.evaluation.timing import Effort, Runner, interleave, pinned_threads, variation
from effitrans.exporting import write_graph
from effitrans.quantization import Int8, Int8Smooth, Int8Static, quantize

WRONG = 0.6
"""Relative error above which a side does not compute the model any more."""

TEXTS = {"sst2": "sentence", "stsb": "sentence1"}
"""Data set -> its column of sentences."""
SETTLE_SECONDS = 0.05
"""Pause between two sides."""

Batch = dict[str, Tensor]
Run = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Setting:
    """What a side is built from."""

    model: Any
    calibration: list[Batch]
    folder: Path
    """For files that a side writes."""


def _hidden(model: Any, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return model(**batch).last_hidden_state


def _fp32(setting: Setting) -> Run:
    return partial(_hidden, setting.model)


def _fp32_compiled(setting: Setting) -> Run:
    return partial(_hidden, effitrans.optimize(setting.model))


def _bf16(setting: Setting) -> Run:
    return partial(_hidden, copy.deepcopy(setting.model).to(torch.bfloat16))


def _effitrans(config: Any, setting: Setting) -> Run:
    return partial(_hidden, effitrans.optimize(quantize(setting.model, config, setting.calibration)))


def _torch_ao(setting: Setting) -> Run:
    """Dynamic int8 of PyTorch itself (deprecated there), eager."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return partial(_hidden, torch.ao.quantization.quantize_dynamic(copy.deepcopy(setting.model), {nn.Linear}))


def _torchao(setting: Setting) -> Run:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # type: ignore[import-not-found]

    model = copy.deepcopy(setting.model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return partial(_hidden, torch.compile(model, dynamic=True))


def _onnxruntime(setting: Setting) -> Run:
    """Dynamic int8, per channel, on a graph that ONNX Runtime optimised."""
    session, _ = onnxruntime_dynamic(setting.model, _example(setting), setting.folder)

    def run(batch: Batch) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in _with_types(batch).items()}
        return torch.from_numpy(session.run(["last_hidden_state"], feed)[0])

    return run


def _with_types(batch: Batch) -> Batch:
    """A batch with token types, which ONNX Runtime's fusion of embeddings looks for."""
    return {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}


def _example(setting: Setting) -> Batch:
    return _with_types(setting.calibration[0])


def _openvino(setting: Setting) -> Run:
    """NNCF's post-training int8 for transformers, calibrated on the same examples."""
    import nncf  # type: ignore[import-not-found]
    import openvino  # type: ignore[import-not-found]

    file = setting.folder / "openvino.onnx"
    write_graph(setting.model, setting.calibration[0], file)
    converted = openvino.convert_model(str(file))
    data = nncf.Dataset(setting.calibration, lambda batch: {name: tensor.numpy() for name, tensor in batch.items()})
    small = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER)
    compiled = openvino.compile_model(
        small, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )

    def run(batch: Batch) -> Tensor:
        return torch.from_numpy(compiled({name: tensor.numpy() for name, tensor in batch.items()})["last_hidden_state"])

    return run


@dataclass(frozen=True)
class Side:
    """One of the engines that are compared."""

    build: Callable[[Setting], Run]
    needs: tuple[str, ...] = ()
    """Packages beyond effitrans's own."""


SIDES: dict[str, Side] = {
    "fp32": Side(_fp32),
    "fp32-compiled": Side(_fp32_compiled),
    "bf16": Side(_bf16),
    "int8-dynamic": Side(partial(_effitrans, Int8())),
    "int8-smooth": Side(partial(_effitrans, Int8Smooth())),
    "int8-static": Side(partial(_effitrans, Int8Static())),
    "torch.ao": Side(_torch_ao),
    "torchao": Side(_torchao, ("torchao",)),
    "onnxruntime": Side(_onnxruntime, ("onnx", "onnxruntime")),
    "openvino": Side(_openvino, ("onnx", "openvino", "nncf")),
}
"""Name in the table -> how it is made. fp32 is the baseline."""


def sentences(data: str) -> list[str]:
    """The test sentences of a set in `TEXTS`, from the folder that `EFFITRANS_DATA` names."""
    folder = os.environ.get("EFFITRANS_DATA")
    file = Path(folder or ".") / data / "test.jsonl"
    if not file.is_file():
        raise SystemExit(f"{file} does not exist: set EFFITRANS_DATA to the folder that holds {data}/test.jsonl")
    return [json.loads(line)[TEXTS[data]] for line in file.read_text(encoding="utf-8").splitlines()]


def batches_of(tokenizer: Any, texts: list[str], batch: int, length: int | None, number: int) -> list[Batch]:
    """Batches of real text: sentences as they are, padded to the longest of a batch, or runs of `length` tokens."""
    if length is None:
        parts = [texts[i * batch : (i + 1) * batch] for i in range(number)]
        return [dict(tokenizer(part, padding=True, return_tensors="pt")) for part in parts]
    ids = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    inner = length - 2
    rows = [
        [tokenizer.cls_token_id, *ids[i * inner : (i + 1) * inner], tokenizer.sep_token_id]
        for i in range(batch * number)
    ]
    stacked = torch.tensor(rows).view(number, batch, length)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in stacked]


def error_of(run: Run, reference: Run, batches: list[Batch]) -> float:
    """Relative L2 error over the tokens that are no padding."""
    difference = size = 0.0
    for batch in batches:
        mask = batch["attention_mask"].bool()
        expected = reference(batch)[mask].float()
        difference += float((run(batch)[mask].float() - expected).square().sum())
        size += float(expected.square().sum())
    return (difference / size) ** 0.5


def measure(runs: Mapping[str, Run], batches: list[Batch], effort: Effort) -> tuple[dict[str, float], dict[str, Any]]:
    """(error of each side, seconds [rounds, batches] of those that are right)."""
    errors = {name: error_of(run, runs["fp32"], batches) for name, run in runs.items()}
    right = {name: Runner(run, batches) for name, run in runs.items() if errors[name] <= WRONG}
    return errors, interleave(right, effort)


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def report(shape: dict[str, Any], errors: Mapping[str, float], samples: Mapping[str, np.ndarray]) -> list[dict]:
    """Print the table of a shape; returns its records."""
    rows, records = [["side", "ms", "x fp32", "95 % interval", "cv", "error"]], []
    for name, error in errors.items():
        if name not in samples:
            rows.append([name, "-", "-", "wrong: not timed", "-", f"{error:.3f}"])
            records.append({**shape, "side": name, "error": error, "ratio": None})
            continue
        seconds = samples[name].sum(1)
        ratio, interval = ratio_interval(samples["fp32"].sum(1), seconds)
        milliseconds = 1000 * float(np.median(seconds)) / samples[name].shape[1]
        cv = variation(samples[name])
        spread = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        rows.append([name, f"{milliseconds:.2f}", f"{ratio:.2f}", spread, f"{cv:.2f}", f"{error:.4f}"])
        records.append(
            {
                **shape,
                "side": name,
                "error": error,
                "p50_ms": milliseconds,
                "ratio": ratio,
                "interval": interval,
                "cv": cv,
                "samples_s": samples[name].tolist(),
            }
        )
    print(f"\n{shape['data']}, batch {shape['batch']}, length {shape['length']}")
    print(table(rows), flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="folder or hub name of an encoder with a tokenizer")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}; fp32 is always there")
    parser.add_argument("--data", default="sst2", choices=sorted(TEXTS), help="whose test sentences are read")
    parser.add_argument("--batches", default="1,8,32", help="batch sizes")
    parser.add_argument("--lengths", default="data,128", help="tokens; data: sentences as they are")
    parser.add_argument("--number", type=int, default=4, help="batches a round")
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the records")
    options = parser.parse_args()
    names = ["fp32", *(name for name in options.sides.split(",") if name != "fp32")]
    if unknown := [name for name in names if name not in SIDES]:
        parser.error(f"unknown side {unknown[0]!r}: choose from {', '.join(SIDES)}")
    from transformers import AutoModel, AutoTokenizer

    path = require_model(options.model)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    texts = sentences(options.data)
    records: list[dict] = []
    with tempfile.TemporaryDirectory() as folder, pinned_threads(options.threads):
        # Calibrated on the end of the split, timed and checked on its beginning.
        calibration = batches_of(tokenizer, texts[-128:], 16, None, 8)
        names_of_inputs = ("input_ids", "attention_mask")
        calibration = [{name: batch[name] for name in names_of_inputs} for batch in calibration]
        setting = Setting(model, calibration, Path(folder))
        runs: dict[str, Run] = {}
        for name in names:
            if missing := [package for package in SIDES[name].needs if importlib.util.find_spec(package) is None]:
                print(f"{name}: not installed ({', '.join(missing)})")
                continue
            runs[name] = SIDES[name].build(setting)
        for length in options.lengths.split(","):
            for batch in map(int, options.batches.split(",")):
                tokens = None if length == "data" else int(length)
                batches = batches_of(tokenizer, texts[: -len(calibration) * 16], batch, tokens, options.number)
                batches = [{name: one[name] for name in names_of_inputs} for one in batches]
                effort = Effort(
                    warmup=2, min_repeats=options.repeats, min_seconds=0, max_seconds=600, settle_seconds=SETTLE_SECONDS
                )
                errors, samples = measure(runs, batches, effort)
                records += report({"data": options.data, "batch": batch, "length": length}, errors, samples)
        if options.output:
            written = provenance(device=model.device, threads=options.threads, dtype=model.dtype, seed=0)
            whole = {"provenance": written.model_dump(mode="json"), "model": options.model, "records": records}
            options.output.write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
