"""Pruned and quantized models of every family load in a process that did nothing but `import effitrans`."""

import subprocess
import sys
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from effitrans import Int8, Pruning, prune, quantize
from tests.architectures.families import FAMILIES, logits, tokens

CLASSIFIERS = {
    "bert": {"model_type": "bert", "num_attention_heads": 4, "num_hidden_layers": 2},
    "distilbert": {"model_type": "distilbert", "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64},
    "roberta": {"model_type": "roberta", "num_attention_heads": 4, "num_hidden_layers": 2},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "pad_token_id": 0},
    "llama": {
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
    },
    "effitrans": {"model_type": "effitrans", "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 0},
}
LOAD = """
import sys
from pathlib import Path
import torch, transformers
import effitrans

torch.set_num_threads(int(sys.argv[2]))
for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    auto_class = (folder / "auto_class").read_text()
    model = getattr(transformers, auto_class).from_pretrained(folder)
    assert not model.training
    with torch.no_grad():
        torch.save(model(**torch.load(folder / "batch.pt")).logits, folder / "logits.pt")
"""


def classifier(options: dict) -> PreTrainedModel:
    """A random two-layer classifier of hidden size 32."""
    torch.manual_seed(0)
    shared = {"vocab_size": 50, "max_position_embeddings": 40}
    if "dim" not in options and "n_embd" not in options:
        shared |= {"hidden_size": 32, "intermediate_size": 64}
    config = transformers.AutoConfig.for_model(**(shared | options))
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def test_pruned_and_quantized_models_reload_bit_equal(tmp_path: Path):
    cases = {
        name: ("AutoModelForSequenceClassification", classifier(options), {"input_ids": tokens()})
        for name, options in CLASSIFIERS.items()
    }
    for family in FAMILIES:
        cases[f"family-{family.name}"] = (family.auto_class, family.model(), family.inputs())
    expected = {}
    for name, (auto_class, model, inputs) in cases.items():
        pruned = prune(model, Pruning(heads=0.5, ffn=0.5, method="magnitude", scope="global"))
        small = quantize(pruned, Int8())
        assert small.num_parameters() < model.num_parameters()
        small.save_pretrained(tmp_path / name)
        (tmp_path / name / "auto_class").write_text(auto_class)
        torch.save(inputs, tmp_path / name / "batch.pt")
        expected[name] = logits(small, inputs)
    subprocess.run([sys.executable, "-c", LOAD, tmp_path, str(torch.get_num_threads())], check=True, timeout=600)
    for name, right in expected.items():
        assert torch.equal(torch.load(tmp_path / name / "logits.pt"), right), name
