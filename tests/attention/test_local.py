"""What is particular to sliding windows: training computes the blocks of a long input in segments."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

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
    assert blocks._segments(331, 32, 40, inputs, dropout=0.1) == 10
    inputs[0].requires_grad_()
    assert blocks._segments(331, 32, 40, inputs) == 10
    assert blocks._segments(331, 32, 64, inputs) == 2
    with torch.no_grad():
        assert blocks._segments(331, 32, 40, inputs) == 1
    assert Local(window=8).build(problem.site)(*inputs, problem.mask(), scale=SCALE).shape == inputs[0].shape


def test_no_segment_holds_nothing(monkeypatch):
    """17 blocks in at most 10 segments: two in each of nine, not one more for a tenth."""
    sizes, attend = [], blocks.scaled_dot_product
    monkeypatch.setattr(
        blocks, "scaled_dot_product", lambda *args, **kw: sizes.append(len(args[0])) or attend(*args, **kw)
    )
    problem = Problem(length=17 * 32, batch=1)
    monkeypatch.setattr(blocks, "_segments", lambda *args: 10)
    Local(window=4).build(problem.site)(*problem.inputs(), problem.mask(), scale=SCALE)
    assert sizes == [2] * 9


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_drops_the_same_again(reentrant, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_SEGMENT_BYTES", 1)
    problem = Problem(length=331)
    operator, inputs = Local(window=4).build(problem.site), problem.inputs()

    def attend(*tensors):
        return operator(*tensors, problem.mask(), scale=SCALE, dropout=0.3)

    def gradients(function):
        torch.manual_seed(0)
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        function(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    again = gradients(lambda *tensors: checkpoint(attend, *tensors, use_reentrant=reentrant))
    for mine, theirs in zip(again, gradients(attend), strict=True):
        torch.testing.assert_close(mine, theirs)
