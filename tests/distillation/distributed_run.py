"""A run for `torchrun`: `distributed_run.py OUTPUT RUN`; the first process writes the weights it ends with."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file

from effitrans import Distillation, distill
from effitrans.distillation import Linearization, linearize, sequences
from effitrans.distillation.cache import teacher as cache
from effitrans.models import EffitransConfig, EffitransForSeq2SeqLM
from tests.training.helpers import VOCABULARY, bert, splits

STEPS = 6

OBJECTIVES = {
    "feature-cached": {"objective": "response,feature,cosine", "cache": True, "cache_hidden_states": True},
    "relation-cached": {"objective": "response,relation,pkd", "cache": True, "cache_hidden_states": True},
    "attention": {"objective": "attention,relation,embeddings", "layer_mapping": "last"},
    "dynamic": {"objective": "feature,response", "layer_mapping": "dynamic"},
    "teachers-cached": {"objective": "response,logit_mse", "teachers": {"other": 2.0}, "cache": True},
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
    cache._SHARD_BYTES = 8 * 13 * 4 * 48 * 4  # several parts, which the processes share
    common = {"max_steps": STEPS, "batch_size": 8, "learning_rate": 1e-3, **settings}
    teacher = bert(seed=7, dropout=0.0, hidden_size=48, num_hidden_layers=3).eval()
    if name == "linearize":
        config = Linearization(**common, transfer_steps=STEPS, attention="hybrid", options={"window": 2}, alpha=1.0)
        return linearize(teacher, splits(48), config, output_dir=output)
    folder = {"cache_folder": str(output / "cache"), "cache_dtype": "fp32"} if "cached" in name else {}
    if name.startswith("answers"):
        sequences._PART = 8
        config = Distillation.parse({**common, **folder, "sequence_level": True, "cache": bool(folder)})
        data = {name: echoes(rows) for name, rows in splits(48).items()}
        return distill(translator(1), translator(2), data, config, output_dir=output)
    config = Distillation.parse({**common, **OBJECTIVES[name], **folder, "alpha": 0.9})
    teachers = {"other": bert(seed=8, dropout=0.0).eval()} if config.teachers else None
    return distill(bert(dropout=0.0, hidden_size=24), teacher, splits(48), config, teachers=teachers, output_dir=output)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = run(sys.argv[2], folder)
    if torch.distributed.get_rank() == 0:
        untied = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
        save_file(untied, folder / "result.safetensors", metadata={"loss": str(result.loss)})
    torch.distributed.barrier()
