"""A compressed decoder in lm-evaluation-harness, on a local task, offline: it finds the likelihoods that we find."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from effitrans import HeadPruning, Int8, prune, quantize
from effitrans.evaluation import evaluate

TEXT = "good film bad plot the a very fine film not poor great awful plot"
TASK = """
task: tiny-text
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
"""


@pytest.fixture
def tokenizer(tiny_tokenizer):
    """The tiny vocabulary with a start token, and nothing added to a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel(tiny_tokenizer.get_vocab(), unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", model_max_length=32
    )


@pytest.fixture
def compressed(tokenizer, tmp_path):
    """A random Llama, half of its heads removed, in int8, saved and loaded again."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    small = quantize(prune(LlamaForCausalLM(config).eval(), HeadPruning(ratio=0.5)), Int8())
    small.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "small")


def test_lm_eval_scores_a_compressed_decoder_as_we_do(compressed, tokenizer, tmp_path):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install lm_eval)")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    assert compressed.model.layers[0].self_attn.q_proj.weight.dtype == torch.int8
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": TEXT}))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(data=tmp_path / "text.jsonl"))
    tasks = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    model = HFLM(pretrained=compressed, tokenizer=tokenizer, batch_size=2)
    theirs = simple_evaluate(model, tasks=["tiny-text"], task_manager=tasks, bootstrap_iters=0)
    figures = theirs["results"]["tiny-text"]

    task = {
        "name": "tiny-text",
        "kind": "causal-lm",
        "data": {"train": str(tmp_path / "text.jsonl"), "test": str(tmp_path / "text.jsonl")},
        "inputs": "text",
        "metrics": ["bits_per_byte"],
    }
    ours = evaluate(compressed, task, processor=tokenizer, cost=None).quality["bits_per_byte"].value
    assert figures["bits_per_byte,none"] == pytest.approx(ours, rel=1e-4)
    assert figures["byte_perplexity,none"] == pytest.approx(2**ours, rel=1e-4)
    (sample,) = theirs["samples"]["tiny-text"]
    loglikelihood = float(sample["filtered_resps"][0])
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT, add_special_tokens=False).input_ids]])
    with torch.inference_mode():
        tokens = compressed(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert loglikelihood == pytest.approx(float(tokens.sum()), rel=1e-4)
