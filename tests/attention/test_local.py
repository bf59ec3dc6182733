"""What is particular to sliding windows: training computes the blocks of a long input in segments."""

import pytest
import torch

from effitrans.attention import Local, blocks
from tests.attention.cases import CASES, SCALE, Problem, build, case_id


@pytest.mark.parametrize("config", CASES["local"], ids=case_id)
@pytest.mark.parametrize("size", [1, 40_000])
@pytest.mark.parametrize("biased", [False, True])
def test_segments_equal_the_whole_in_values_and_gradients(config, size, biased, monkeypatch):
    problem = Problem(padding="left", batch=3, length=999)
    operator, inputs = build(config, problem), problem.inputs()
    bias = torch.randn(1, problem.heads, 999, 999, dtype=torch.float64, requires_grad=True) if biased else None
    leaves = [*inputs, *([bias] if biased else [])]

    def run():
        out = operator(*inputs, problem.mask(), scale=SCALE, position_bias=bias)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    whole = run()
    calls, attend = [], blocks.scaled_dot_product
    monkeypatch.setattr(blocks, "scaled_dot_product", lambda *args, **kw: calls.append(1) or attend(*args, **kw))
    monkeypatch.setattr(blocks, "CPU_SEGMENT_BYTES", size)
    for mine, theirs in zip(run(), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert len(calls) != 1  # none where dilation or global tokens meet a bias, which is computed densely


def test_there_is_one_segment_without_gradients(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_SEGMENT_BYTES", 1)
    problem = Problem(length=331)
    inputs = [tensor.detach() for tensor in problem.inputs()]
    assert blocks._segments(331, 32, 40, inputs) == 1
    inputs[0].requires_grad_()
    assert blocks._segments(331, 32, 40, inputs) == 10
    assert blocks._segments(331, 32, 64, inputs) == 2
    with torch.no_grad():
        assert blocks._segments(331, 32, 40, inputs) == 1
    assert Local(window=8).build(problem.site)(*inputs, problem.mask(), scale=SCALE).shape == inputs[0].shape
