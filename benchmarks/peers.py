"""The same job done by effitrans and by what one would otherwise pick, scored by one harness.

    python benchmarks/peers.py --run runs/sst2-minilm --output reports/peers/sst2
    python benchmarks/peers.py --run runs/stsb-minilm --task stsb --output reports/peers/stsb

takes the fine-tuned teacher and the final model that `effitrans run` left, makes the teacher small with each of the
other tools at its documented setting for CPUs (extra `peers`), and writes a record a model and the page that compares
them. Tools that are not installed are named and left out. Every model is scored on the same examples and timed in
turn with the fp32 teacher, on two threads. A tool that fails is reported with its error.

Engines outside PyTorch are wrapped as a model whose forward pass calls them, so nothing but that call is timed. The
idle threads of an engine spin and take cores from what runs next (ONNX Runtime's doubled the teacher's time at batch
1), so model and teacher take turns by whole rounds, with a pause between.
"""

import argparse
import copy
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from engines import onnxruntime_dynamic
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from effitrans.checkpoint import load_model, load_processor
from effitrans.evaluation import Cost, Record, evaluate
from effitrans.reporting import report
from effitrans.tasks import Task, calibration_batches, load_task

logger = logging.getLogger("effitrans.benchmarks")

AUTO_CLASS = "AutoModelForSequenceClassification"
CALIBRATION_EXAMPLES = 256
SETTLE_MS = 100.0
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Engine(PreTrainedModel):
    """A model of another runtime as a transformers model: `run` takes the inputs by name and returns the logits."""

    # transformers checks this against the config, which is the original model's.
    _supports_sdpa = True

    def __init__(self, original: PreTrainedModel, run: Callable[[dict[str, Tensor]], Tensor], folder_bytes: int):
        super().__init__(original.config)
        self.run = run
        self.folder_bytes = folder_bytes
        # The harness asks where the parameters are.
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """They are within the other runtime."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        logits = self.run({"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types})
        return SequenceClassifierOutput(logits=logits)


Maker = Callable[[PreTrainedModel, list[dict[str, Tensor]], Path], PreTrainedModel]
"""(teacher, calibration batches, folder for files) -> the small model."""


def torch_compiled(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """`torch.compile` of the fp32 model and nothing else."""
    same = copy.deepcopy(teacher)
    same.save_pretrained(folder)
    same.forward = torch.compile(same.forward, dynamic=True)  # type: ignore[method-assign]
    return same


def torch_bf16(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """Every weight and activation in bfloat16."""
    small = copy.deepcopy(teacher).to(torch.bfloat16)
    small.save_pretrained(folder)
    return small


def torch_dynamic(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """`torch.ao.quantization.quantize_dynamic` of the linear layers (deprecated, still what most tutorials show)."""
    from torch.ao.quantization import quantize_dynamic

    small = quantize_dynamic(copy.deepcopy(teacher), {nn.Linear}, dtype=torch.qint8)
    torch.save(small.state_dict(), folder / "weights.pt")
    return small


def torch_pruned(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """Half of the linear weights set to zero by magnitude (`torch.nn.utils.prune`), made permanent."""
    from torch.nn.utils import prune

    small = copy.deepcopy(teacher)
    linear = [(m, "weight") for n, m in small.named_modules() if isinstance(m, nn.Linear) and "encoder" in n]
    prune.global_unstructured(linear, prune.L1Unstructured, amount=0.5)
    for module, name in linear:
        prune.remove(module, name)
    small.save_pretrained(folder)
    return small


def torchao_dynamic(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """torchao's int8 weights and int8 dynamic activations, under `torch.compile` as its guide says."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    small = copy.deepcopy(teacher)
    quantize_(small, Int8DynamicActivationInt8WeightConfig())
    torch.save(small.state_dict(), folder / "weights.pt")
    small.forward = torch.compile(small.forward, dynamic=True)  # type: ignore[method-assign]
    return small


def quanto(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """optimum-quanto: int8 weights and calibrated int8 activations, frozen."""
    from optimum.quanto import Calibration, freeze, qint8, quantize
    from safetensors.torch import save_file

    small = copy.deepcopy(teacher)
    quantize(small, weights=qint8, activations=qint8, exclude="classifier")
    with Calibration(), torch.no_grad():
        for batch in batches:
            small(**batch)
    freeze(small)
    state = {k: v.contiguous() for k, v in small.state_dict().items() if isinstance(v, Tensor)}
    save_file(state, folder / "weights.safetensors")
    return small


def bitsandbytes_int8(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """LLM.int8() through transformers."""
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    teacher.save_pretrained(folder / "original")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier", "pooler"])
    small = AutoModelForSequenceClassification.from_pretrained(folder / "original", quantization_config=config)
    small.save_pretrained(folder / "small")
    return small.eval()


def onnxruntime_int8(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """ONNX Runtime: graph optimised for BERT, then dynamic int8 per channel."""
    ids = batches[0]["input_ids"]
    example = {name: batches[0].get(name, torch.zeros_like(ids)) for name in INPUTS}
    session, small = onnxruntime_dynamic(teacher, example, folder)

    def run(inputs: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {name: inputs[name].numpy() for name in INPUTS})[0])

    return Engine(teacher, run, small.stat().st_size)


def openvino_int8(teacher: PreTrainedModel, batches: list[dict[str, Tensor]], folder: Path) -> PreTrainedModel:
    """OpenVINO with NNCF's post-training quantization for Transformers, calibrated on training examples."""
    import nncf
    import openvino

    example = {name: batches[0].get(name, torch.zeros_like(batches[0]["input_ids"])) for name in INPUTS}
    converted = openvino.convert_model(teacher, example_input=example)
    rows = [{name: b.get(name, torch.zeros_like(b["input_ids"])).numpy() for name in INPUTS} for b in batches]
    small = nncf.quantize(converted, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(small, folder / "small.xml")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(folder / "small.xml", "CPU", settings)

    def run(inputs: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(compiled({k: v.numpy() for k, v in inputs.items()})[0].copy())

    return Engine(teacher, run, sum(path.stat().st_size for path in folder.glob("small.*")))


PEERS: dict[str, tuple[str, Maker]] = {
    "torch fp32 (compiled)": ("torch", torch_compiled),
    "torch bfloat16": ("torch", torch_bf16),
    "torch.ao dynamic int8": ("torch", torch_dynamic),
    "torch magnitude 50 % (zeros)": ("torch", torch_pruned),
    "torchao int8 dynamic (compiled)": ("torchao", torchao_dynamic),
    "optimum-quanto int8": ("optimum.quanto", quanto),
    "bitsandbytes LLM.int8": ("bitsandbytes", bitsandbytes_int8),
    "ONNX Runtime dynamic int8": ("onnxruntime", onnxruntime_int8),
    "OpenVINO NNCF int8": ("nncf", openvino_int8),
}
"""Name in the table -> the package it needs and the function that makes it."""


def score_peer(
    name: str, maker: Maker, teacher_folder: Path, task: Task, batches: list[dict[str, Tensor]], cost: Cost
) -> Record:
    """The record of one peer beside the fp32 teacher."""
    teacher = load_model(teacher_folder, AUTO_CLASS).eval()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = maker(teacher, batches, folder)
        processor = load_processor(teacher_folder)
        record = evaluate(small, task, processor=processor, baseline=teacher_folder, cost=cost, name=name)
        if isinstance(small, Engine):
            stored = small.folder_bytes
        else:
            files = [path for path in folder.rglob("*") if path.suffix in (".pt", ".safetensors")]
            files = [path for path in files if path.parent.name != "original"]
            stored = sum(path.stat().st_size for path in files) or None
    if record.cost is None:
        return record
    changes: dict[str, Any] = {"bytes_on_disk": stored}
    if opaque := _keeps_weights_to_itself(small):
        changes |= {"parameters": None, "nonzero_parameters": None, "bits_per_weight": None}
    structure = None if opaque else record.structure
    return record.model_copy(update={"cost": record.cost.model_copy(update=changes), "structure": structure})


def _keeps_weights_to_itself(model: PreTrainedModel) -> bool:
    """Whether weights are held where PyTorch does not list them: in another runtime, or packed by `torch.ao`."""
    modules = model.modules()
    return isinstance(model, Engine) or any("torch.ao.nn.quantized" in type(m).__module__ for m in modules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder that `effitrans run` left")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="names of peers")
    parser.add_argument("--seconds", type=float, default=15.0, help="most seconds a shape")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("effitrans").setLevel(logging.INFO)
    torch.set_num_threads(2)
    task = load_task(options.task)
    steps = sorted((options.run / "steps").iterdir())
    teacher, last = steps[0], steps[-1]
    cost = Cost(
        batches=(1, 32),
        lengths=("data", 128),
        max_seconds=options.seconds,
        settle_ms=SETTLE_MS,
        memory=False,
        flops=False,
    )
    processor = load_processor(teacher)
    batches = [
        {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
        for batch in calibration_batches(
            task, load_model(teacher, AUTO_CLASS), processor, limit=CALIBRATION_EXAMPLES, batch_size=8, seed=0
        )
    ]
    records = options.output / "records"
    own = {
        "effitrans int8 of the teacher": None,
        "effitrans, the whole recipe": last,
    }
    chosen = options.only or [*PEERS, *own]
    failures: list[str] = []
    for number, name in enumerate(chosen, 1):
        path = records / f"{number:02d}-{'-'.join(''.join(c if c.isalnum() else ' ' for c in name).split())}.json"
        if path.is_file():
            continue
        try:
            record = _own(name, own, teacher, task, cost) if name in own else score_peer(
                name, PEERS[name][1], teacher, task, batches, cost
            )  # fmt: skip
        except ImportError as error:
            logger.warning("%s is left out: %s", name, error)
            failures.append(f"{name} is left out: {error}")
            continue
        except Exception as error:  # A peer that breaks is a result, and must not end the others.
            logger.exception("%s failed", name)
            failures.append(f"{name} failed: {str(error).splitlines()[0]}")
            continue
        fidelity = record.fidelity and record.fidelity.model_copy(update={"baseline": "fp32 teacher"})
        record.model_copy(update={"fidelity": fidelity}).save(path)
    reference = evaluate(teacher, task, cost=cost, name="fp32 teacher")
    reference.model_copy(update={"notes": (*reference.notes, *failures)}).save(records / "00-teacher.json")
    files = sorted(records.glob("*.json"))
    report(files, options.output / "report.html", title=f"effitrans and its peers on {task.name}")


def _own(name: str, own: dict[str, Path | None], teacher: Path, task: Task, cost: Cost) -> Record:
    """The record of one of effitrans's own models."""
    folder = own[name]
    if folder is not None:
        return evaluate(folder, task, baseline=teacher, cost=cost, optimize=True, name=name)
    from effitrans import Int8, quantize
    from effitrans.checkpoint import save

    with TemporaryDirectory() as temporary:
        small = Path(temporary) / "small"
        save(quantize(load_model(teacher, AUTO_CLASS), Int8()), small, load_processor(teacher))
        return evaluate(small, task, baseline=teacher, cost=cost, optimize=True, name=name)


if __name__ == "__main__":
    sys.exit(main())
