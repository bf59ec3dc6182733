"""The configuration: defaults, round trips, and what it refuses."""

import pytest
from transformers import AutoConfig

from effitrans.errors import UsageError
from effitrans.models import EffitransConfig


def test_defaults_follow_from_one_another():
    config = EffitransConfig(hidden_size=96, num_attention_heads=6)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (16, 6, 384)
    assert (config.position, config.max_position_embeddings, config.is_encoder_decoder) == ("rotary", 512, False)
    assert EffitransConfig(hidden_size=96, hidden_act="swiglu").intermediate_size == 256
    pair = EffitransConfig(form="encoder-decoder", num_hidden_layers=3, bos_token_id=5)
    assert (pair.num_decoder_layers, pair.decoder_start_token_id, pair.is_encoder_decoder) == (3, 5, True)
    assert EffitransConfig(form="encoder-decoder", pad_token_id=7).decoder_start_token_id == 7
    image = EffitransConfig(image_size=(6, 8), patch_size=2)
    assert (image.position, image.max_position_embeddings, image.image_shape) == ("learned", 12, (6, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"form": "decoder", "position": "alibi", "num_key_value_heads": 2, "head_dim": 24, "norm": "post"},
        {"form": "encoder-decoder", "num_decoder_layers": 2, "position": "relative", "norm_type": "rms_norm"},
        {"image_size": (8, 6), "num_channels": 3, "patch_size": 2, "num_labels": 5},
        {"num_labels": 1, "problem_type": "regression", "hidden_act": "swiglu", "eos_token_id": [3, 4]},
    ],
    ids=lambda o: "-".join(o),
)
def test_round_trip_through_a_folder(options, tmp_path):
    config = EffitransConfig(**options)
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is EffitransConfig
    assert reloaded.to_diff_dict() == config.to_diff_dict()
    for name, value in options.items():
        kept = getattr(reloaded, name)
        assert (tuple(kept) if isinstance(kept, list) else kept) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "encodr"}, "unknown form 'encodr': did you mean 'encoder'"),
        ({"position": "rotory"}, "did you mean 'rotary'"),
        ({"hidden_act": "tanh"}, "unknown hidden_act 'tanh'.*Valid: gelu, relu, swiglu"),
        ({"norm": "layer_norm"}, "unknown norm 'layer_norm'.*Valid: post, pre"),
        ({"norm_type": "batch"}, "Valid: layer_norm, rms_norm"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "100 does not divide into 3 attention heads: choose"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads must divide"),
        ({"hidden_size": 36, "num_attention_heads": 4}, "head_dim must be even, received 9"),
        ({"position": "relative", "relative_attention_num_buckets": 7}, "relative_attention_num_buckets"),
        ({"position": "relative", "relative_attention_max_distance": 16}, "received 32 and 16"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 to 4096, received 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 4096, received 1000000000"),
        ({"rope_theta": float("inf")}, "rope_theta must be a number above 0, received inf"),
        ({"norm_eps": float("nan")}, "norm_eps must be a number above 0, received nan"),
        ({"hidden_size": "64"}, "hidden_size must be a whole number from 1 to 1048576, received '64'"),
        ({"hidden_size": 64.0}, "received 64.0"),
        ({"head_dim": -2}, "head_dim must be"),
        ({"hidden_dropout": 1.0}, "hidden_dropout must be a number from 0 up to"),
        ({"rope_theta": 0}, "rope_theta must be a number above 0"),
        ({"num_decoder_layers": 2}, "num_decoder_layers=2 with form 'encoder'"),
        ({"vocab_size": 10, "eos_token_id": 10}, "eos_token_id 10 is no token of a vocabulary of 10"),
        ({"vocab_size": 10, "eos_token_id": [1, 11]}, "eos_token_id 11"),
        ({"form": "encoder-decoder", "pad_token_id": None}, "needs a pad_token_id"),
        ({"image_size": 0}, "image_size must be one number or"),
        ({"image_size": [8, 8, 1]}, "image_size must be one number or"),
        ({"image_size": 7, "patch_size": 2}, "7 x 7 does not cut into patches of side 2"),
        ({"image_size": 8, "max_position_embeddings": 63}, "64 patches, more than max_position_embeddings 63"),
        ({"image_size": 8, "form": "encoder-decoder"}, "reads tokens"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_refuses_what_cannot_work(options, message):
    with pytest.raises(UsageError, match=message):
        EffitransConfig(**options)
