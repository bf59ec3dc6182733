"""A run for `torchrun`: `distributed_run.py OUTPUT RUN`; the first process writes the weights it ends with."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file

from effitrans import Distillation, distill
from effitrans.distillation import Linearization, linearize, sequences
from effitrans.distillation.cache import teacher as cached
from effitrans.models import EffitransConfig, EffitransForSeq2SeqLM
from tests.training.helpers import VOCABULARY, bert, splits

STEPS = 6

OBJECTIVES = {
    "feature-cached": {"objective": "response,feature,cosine"},
    "relation-cached": {"objective": "response,relation,pkd"},
    "attention": {"objective": {"attention": {"layer_mapping": "last"}, "relation": 1, "embedding_layer": 1}},
    "dynamic": {"objective": {"feature": {"layer_mapping": "dynamic"}, "response": 1}},
    "teachers-cached": {"objective": "response,logit_mse", "teachers": {"other": 2.0}},
}
"""Name of a run -> what the student, half as wide as its teacher, learns."""

RUNS = (*OBJECTIVES, "linearize", "answers", "answers-cached")


def translator(layers: int) -> EffitransForSeq2SeqLM:
    torch.manual_seed(layers)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": layers, "hidden_dropout": 0.0}
    return EffitransForSeq2SeqLM(EffitransConfig(form="encoder-decoder", eos_token_id=2, bos_token_id=1, **shape))


def echoes(rows: Dataset) -> Dataset:
    """Sentences whose target is the sentence, which the teacher's answers replace."""
    return rows.remove_columns("labels").add_column("labels", [[*ids, 2] for ids in rows["input_ids"]])


def run(name: str, output: Path, **settings):
    """Eight examples a step and process, without dropout."""
    cached._SHARD_BYTES = 8 * 13 * 4 * 48 * 4  # several parts, which the processes share
    common = {"max_steps": STEPS, "batch_size": 8, "learning_rate": 1e-3, **settings}
    teacher = bert(seed=7, dropout=0.0, hidden_size=48, num_hidden_layers=3).eval()
    if name == "linearize":
        config = Linearization(
            **common, transfer={"max_steps": STEPS}, attention="hybrid", options={"window": 2}, alpha=1.0
        )
        return linearize(teacher, splits(48), config, output_dir=output)
    cache = {"folder": str(output / "cache"), "dtype": "fp32"} if "cached" in name else None
    if name.startswith("answers"):
        sequences._PART = 8
        config = Distillation.parse({**common, "sequence_level": True, "cache": cache})
        data = {name: echoes(rows) for name, rows in splits(48).items()}
        return distill(translator(1), translator(2), data, config, output_dir=output)
    config = Distillation.parse({**common, **OBJECTIVES[name], "cache": cache, "alpha": 0.9})
    teachers = {"other": bert(seed=8, dropout=0.0).eval()} if config.teachers else None
    return distill(bert(dropout=0.0, hidden_size=24), teacher, splits(48), config, teachers=teachers, output_dir=output)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = run(sys.argv[2], folder)
    if torch.distributed.get_rank() == 0:
        untied = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
        save_file(untied, folder / "result.safetensors", metadata={"loss": str(result.loss)})
    torch.distributed.barrier()
