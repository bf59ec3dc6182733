"""torch.compile takes each form whole, and gives the same numbers at lengths it has not seen."""

import pytest
import torch

from .cases import CASES, build, output_of, tokens

pytestmark = pytest.mark.slow
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "position"),
    [("model-encoder", "relative"), ("causal-lm", "alibi"), ("causal-lm", "learned"), ("seq2seq-lm", "rotary")],
)
@torch.no_grad()
def test_compiled_equals_eager(name, position):
    case = next(case for case in CASES if case.name == name)
    options = {"num_decoder_layers": 1} if case.form == "encoder-decoder" else {}
    model = case.build(position=position, num_hidden_layers=1, **options)
    inputs = {**case.inputs(), "use_cache": False}
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    real = inputs["attention_mask"].bool() if "decoder_input_ids" not in inputs else slice(None)
    torch.testing.assert_close(output_of(compiled(**inputs))[real], output_of(model(**inputs))[real], **CLOSE)
    longer = {"input_ids": tokens(2, 11), "attention_mask": torch.ones(2, 11).long(), "use_cache": False}
    if "decoder_input_ids" in inputs:
        longer["decoder_input_ids"] = tokens(2, 9)
    torch.testing.assert_close(output_of(compiled(**longer)), output_of(model(**longer)), **CLOSE)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_generation_with_a_static_cache(position):
    from effitrans.models import EffitransForCausalLM

    model = build(EffitransForCausalLM, "decoder", position=position, tie_word_embeddings=False)
    options = {"max_new_tokens": 6, "do_sample": False, "no_repeat_ngram_size": 1}
    expected = model.generate(tokens(2, 5), **options)
    assert torch.equal(model.generate(tokens(2, 5), cache_implementation="static", **options), expected)
