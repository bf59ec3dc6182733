"""A run for `torchrun`: `distributed_run.py OUTPUT RUN`; the first process writes the weights it ends with."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from effitrans import Distillation, Training, distill, train
from tests.training.helpers import bert, splits

STEPS = 9


def run(name: str, output: Path, resume: bool = False, **settings):
    """Six examples a step and process, over two epochs, without dropout."""
    common = {"epochs": 2, "max_steps": STEPS, "batch_size": 8, "learning_rate": 1e-3, "save_every": 4, **settings}
    model = bert(dropout=0.0)
    if name == "train":
        return train(model, splits(), Training(**common), output_dir=output, resume=resume)
    teacher = bert(seed=7, dropout=0.0, hidden_size=48, num_hidden_layers=3).eval()
    config = Distillation(**common, objective="response,feature", alpha=1.0)
    return distill(model, teacher, splits(), config, output_dir=output, resume=resume)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = run(sys.argv[2], folder)
    if torch.distributed.get_rank() == 0:
        save_file(result.model.state_dict(), folder / "result.safetensors", metadata={"loss": str(result.loss)})
    torch.distributed.barrier()
