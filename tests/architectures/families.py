"""Tiny random models of every family, and what there is to know about them written down by hand.

Nothing here goes through the adapters, so the tests compare the adapters with something else than themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.t5 import modeling_t5
from transformers.pytorch_utils import Conv1D

from effitrans import models

HIDDEN, HEAD_DIM, WIDTH, LAYERS, VOCABULARY = 32, 8, 64, 3, 50


@dataclass(frozen=True)
class Family:
    """One model of a family. All have 3 layers a stack, hidden size 32, FFN width 64 and head size 8."""

    name: str
    build: Callable[[], PreTrainedModel]
    auto_class: str
    stacks: tuple[str, ...]
    attention: dict[str, list[str]]
    """Site name as users see it -> paths of the output projections that lose columns."""
    feed_forward: dict[str, str]
    """FFN path -> path of its output module."""
    units: int = 4
    """Key/value heads of a site."""
    queries: int = 1
    """Query heads to a key/value head."""
    qkv_bias: bool = True
    ffn_bias: bool = True
    ffn_inputs: int = 1
    table: int = 0
    """Parameters that a site's query head has beside its projections (relative position tables)."""
    layers_field: tuple[str, ...] = ("num_hidden_layers",)
    inputs: Callable[[], dict[str, Tensor]] = None  # type: ignore[assignment]
    generates: bool = False
    tied: bool = False
    """Whether the output layer is the embedding table."""

    def model(self, seed: int = 0) -> PreTrainedModel:
        """A fresh model in eval mode with weights large enough that every unit matters."""
        torch.manual_seed(seed)
        model = self.build()
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.25)
            elif "bias" in name:
                nn.init.normal_(parameter, std=0.1)
        return model.eval()

    def parameters_of_head(self, site: str) -> int:
        """Parameters of one unit of an attention site: q, k, v, output, and its part of position tables."""
        qkv = (self.queries + 2) * HEAD_DIM * (HIDDEN + self.qkv_bias)
        return len(self.attention[site]) * (qkv + self.queries * HEAD_DIM * HIDDEN) + self.queries * (
            self.table if "cross" not in site else 0
        )

    def parameters_of_neuron(self) -> int:
        """Parameters of one neuron."""
        return self.ffn_inputs * (HIDDEN + self.ffn_bias) + HIDDEN


def mask_inputs(model: nn.Module, path: str, features: list[int]) -> None:
    """Make a linear module ignore some of its input features."""
    module = model.get_submodule(path)
    with torch.no_grad():
        if isinstance(module, Conv1D):
            module.weight[features] = 0
        else:
            module.weight[:, features] = 0  # type: ignore[index]


def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The model's main output."""
    with torch.no_grad():
        return model(**batch).logits


def tokens(seed: int = 1, batch: int = 3, length: int = 7) -> Tensor:
    return torch.randint(5, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def _classification() -> dict[str, Tensor]:
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": tokens(), "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}


def _causal() -> dict[str, Tensor]:
    ids = tokens()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def _causal_with_encoder() -> dict[str, Tensor]:
    return {**_causal(), "encoder_hidden_states": torch.randn(3, 6, HIDDEN, generator=torch.Generator().manual_seed(2))}


def _seq2seq() -> dict[str, Tensor]:
    return {**_classification(), "labels": tokens(2, length=5)}


def _images() -> dict[str, Tensor]:
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 1])}


def _sites(*templates: str) -> list[str]:
    return [template.format(i) for template in templates for i in range(LAYERS)]


def _each(template: str, output: str) -> dict[str, list[str]]:
    return {site: [out] for site, out in zip(_sites(template), _sites(output), strict=True)}


def _ffn(template: str, output: str) -> dict[str, str]:
    return dict(zip(_sites(template), _sites(output), strict=True))


def _bert_like(name: str, model: str, config: str, prefix: str) -> Family:
    def build() -> PreTrainedModel:
        settings = getattr(transformers, config)(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=WIDTH,
            max_position_embeddings=40,
        )
        return getattr(transformers, model)(settings)

    layer = f"{prefix}.encoder.layer.{{}}"
    return Family(
        name=name,
        build=build,
        auto_class="AutoModelForSequenceClassification",
        stacks=("encoder",),
        attention=_each(f"{layer}.attention.self", f"{layer}.attention.output.dense"),
        feed_forward=_ffn(f"{layer}.intermediate", f"{layer}.output.dense"),
        inputs=_classification,
    )


def _distilbert() -> PreTrainedModel:
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, n_layers=LAYERS, n_heads=4, hidden_dim=WIDTH, max_position_embeddings=40
    )
    return transformers.DistilBertForSequenceClassification(config)


def _gpt2(**extra: Any) -> PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=40,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_inner=WIDTH,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **extra,
    )
    return transformers.GPT2LMHeadModel(config)


def _bert_decoder() -> PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=WIDTH,
        max_position_embeddings=40,
        is_decoder=True,
        add_cross_attention=True,
    )
    return transformers.BertLMHeadModel(config)


def _llama_like(name: str, qkv_bias: bool, **extra: Any) -> Family:
    def build() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=HEAD_DIM,
            intermediate_size=WIDTH,
            max_position_embeddings=40,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
            **extra,
        )
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return Family(
        name=name.lower(),
        build=build,
        auto_class="AutoModelForCausalLM",
        stacks=("decoder",),
        attention=_each("model.layers.{}.self_attn", "model.layers.{}.self_attn.o_proj"),
        feed_forward=_ffn("model.layers.{}.mlp", "model.layers.{}.mlp.down_proj"),
        queries=2,
        qkv_bias=qkv_bias,
        ffn_bias=False,
        ffn_inputs=2,
        inputs=_causal,
        generates=True,
        tied=extra.get("tie_word_embeddings", False),
    )


def _vit() -> PreTrainedModel:
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=WIDTH,
    )
    return transformers.ViTForImageClassification(config)


def _t5(activation: str) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        config = transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            d_kv=HEAD_DIM,
            d_ff=WIDTH,
            num_layers=LAYERS,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            feed_forward_proj=activation,
            decoder_start_token_id=0,
            eos_token_id=None,
        )
        return transformers.T5ForConditionalGeneration(config)

    return build


def _t5_family(name: str, activation: str, inputs: int) -> Family:
    encoder, decoder = "encoder.block.{}.layer.", "decoder.block.{}.layer."
    return Family(
        name=name,
        build=_t5(activation),
        auto_class="AutoModelForSeq2SeqLM",
        stacks=("encoder", "decoder"),
        attention={
            "encoder self-attention": _sites(encoder + "0.SelfAttention.o"),
            "decoder self-attention": _sites(decoder + "0.SelfAttention.o"),
            "decoder cross-attention": _sites(decoder + "1.EncDecAttention.o"),
        },
        feed_forward=_ffn(encoder + "1.DenseReluDense", encoder + "1.DenseReluDense.wo")
        | _ffn(decoder + "2.DenseReluDense", decoder + "2.DenseReluDense.wo"),
        qkv_bias=False,
        ffn_bias=False,
        ffn_inputs=inputs,
        table=8,
        layers_field=("num_layers", "num_decoder_layers"),
        inputs=_seq2seq,
        generates=True,
        tied=True,
    )


def _bart() -> PreTrainedModel:
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=WIDTH,
        decoder_ffn_dim=WIDTH,
        max_position_embeddings=40,
        eos_token_id=2,
        forced_eos_token_id=None,
    )
    return transformers.BartForConditionalGeneration(config)


def _base(name: str, task: str, **options: Any) -> Family:
    stacks = {"encoder": ("encoder",), "decoder": ("decoder",), "encoder-decoder": ("encoder", "decoder")}[
        options["form"]
    ]
    queries = options.pop("queries", 1)

    def build() -> PreTrainedModel:
        config = models.EffitransConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4 * queries,
            num_key_value_heads=4,
            head_dim=HEAD_DIM,
            intermediate_size=WIDTH,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            **options,
        )
        return getattr(models, f"EffitransFor{task}")(config)

    attention: dict[str, list[str]] = {}
    feed_forward: dict[str, str] = {}
    for stack in stacks:
        path = f"model.{stack}.layers.{{}}."
        for block in ("self_attn", "cross_attn") if len(stacks) == 2 and stack == "decoder" else ("self_attn",):
            attention |= _each(path + block, path + block + ".o_proj")
        feed_forward |= _ffn(path + "mlp", path + "mlp.down_proj")
    seq2seq = task == "Seq2SeqLM"
    return Family(
        name=f"base-{name}",
        build=build,
        auto_class=f"AutoModelFor{task}",
        stacks=stacks,
        attention=attention,
        feed_forward=feed_forward,
        queries=queries,
        ffn_inputs=2 if options.get("hidden_act") == "swiglu" else 1,
        table=8 if options["position"] == "relative" else 0,
        layers_field=("num_hidden_layers", "num_decoder_layers") if seq2seq else ("num_hidden_layers",),
        inputs={"Seq2SeqLM": _seq2seq, "CausalLM": _causal, "SequenceClassification": _classification}[task],
        generates=task in ("Seq2SeqLM", "CausalLM"),
        tied=task in ("Seq2SeqLM", "CausalLM"),
    )


FAMILIES = [
    _bert_like("bert", "BertForSequenceClassification", "BertConfig", "bert"),
    _bert_like("roberta", "RobertaForSequenceClassification", "RobertaConfig", "roberta"),
    Family(
        name="distilbert",
        build=_distilbert,
        auto_class="AutoModelForSequenceClassification",
        stacks=("encoder",),
        attention=_each(
            "distilbert.transformer.layer.{}.attention", "distilbert.transformer.layer.{}.attention.out_lin"
        ),
        feed_forward=_ffn("distilbert.transformer.layer.{}.ffn", "distilbert.transformer.layer.{}.ffn.lin2"),
        layers_field=("n_layers",),
        inputs=_classification,
    ),
    Family(
        name="gpt2",
        build=_gpt2,
        auto_class="AutoModelForCausalLM",
        stacks=("decoder",),
        attention=_each("transformer.h.{}.attn", "transformer.h.{}.attn.c_proj"),
        feed_forward=_ffn("transformer.h.{}.mlp", "transformer.h.{}.mlp.c_proj"),
        layers_field=("n_layer",),
        inputs=_causal,
        generates=True,
        tied=True,
    ),
    Family(
        name="gpt2-cross",
        build=partial(_gpt2, add_cross_attention=True, scale_attn_by_inverse_layer_idx=True),
        auto_class="AutoModelForCausalLM",
        stacks=("decoder",),
        attention=_each("transformer.h.{}.attn", "transformer.h.{}.attn.c_proj")
        | _each("transformer.h.{}.crossattention", "transformer.h.{}.crossattention.c_proj"),
        feed_forward=_ffn("transformer.h.{}.mlp", "transformer.h.{}.mlp.c_proj"),
        layers_field=("n_layer",),
        inputs=_causal_with_encoder,
        tied=True,
    ),
    Family(
        name="bert-decoder",
        build=_bert_decoder,
        auto_class="AutoModelForCausalLM",
        stacks=("decoder",),
        attention=_each("bert.encoder.layer.{}.attention.self", "bert.encoder.layer.{}.attention.output.dense")
        | _each("bert.encoder.layer.{}.crossattention.self", "bert.encoder.layer.{}.crossattention.output.dense"),
        feed_forward=_ffn("bert.encoder.layer.{}.intermediate", "bert.encoder.layer.{}.output.dense"),
        inputs=_causal_with_encoder,
        tied=True,
    ),
    _llama_like("Llama", qkv_bias=False),
    _llama_like("Mistral", qkv_bias=False, sliding_window=4),
    _llama_like(
        "Qwen2", qkv_bias=True, use_sliding_window=True, sliding_window=4, max_window_layers=1, tie_word_embeddings=True
    ),
    Family(
        name="vit",
        build=_vit,
        auto_class="AutoModelForImageClassification",
        stacks=("encoder",),
        attention=_each("vit.layers.{}.attention", "vit.layers.{}.attention.o_proj"),
        feed_forward=_ffn("vit.layers.{}.mlp", "vit.layers.{}.mlp.fc2"),
        inputs=_images,
    ),
    _t5_family("t5", "relu", 1),
    _t5_family("t5-gated", "gated-gelu", 2),
    Family(
        name="bart",
        build=_bart,
        auto_class="AutoModelForSeq2SeqLM",
        stacks=("encoder", "decoder"),
        attention=_each("model.encoder.layers.{}.self_attn", "model.encoder.layers.{}.self_attn.out_proj")
        | _each("model.decoder.layers.{}.self_attn", "model.decoder.layers.{}.self_attn.out_proj")
        | _each("model.decoder.layers.{}.encoder_attn", "model.decoder.layers.{}.encoder_attn.out_proj"),
        feed_forward=_ffn("model.encoder.layers.{}", "model.encoder.layers.{}.fc2")
        | _ffn("model.decoder.layers.{}", "model.decoder.layers.{}.fc2"),
        layers_field=("encoder_layers", "decoder_layers"),
        inputs=_seq2seq,
        generates=True,
        tied=True,
    ),
    _base("alibi", "SequenceClassification", form="encoder", position="alibi", norm="post"),
    _base("decoder", "CausalLM", form="decoder", position="rotary", queries=2, hidden_act="swiglu"),
    _base("alibi-decoder", "CausalLM", form="decoder", position="alibi", queries=2),
    _base("seq2seq", "Seq2SeqLM", form="encoder-decoder", position="relative"),
]


THROUGH_INTERFACE = [
    f for f in FAMILIES if not f.name.startswith("t5") or hasattr(modeling_t5, "ALL_ATTENTION_FUNCTIONS")
]
"""Families that take attention operators: all of them, but for T5 before transformers 5.15."""

CORE = ("bert", "gpt2", "llama", "t5", "base-seq2seq")
"""Families that between them run every kind of code; suites that are slow leave the others to the slow suite."""


def core_first() -> list[Any]:
    """All families as parameters of a test, those not in `CORE` marked slow."""
    return [pytest.param(f, id=f.name, marks=[] if f.name in CORE else [pytest.mark.slow]) for f in FAMILIES]
