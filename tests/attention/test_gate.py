"""The decay gate of linear attention: the recurrence it stands for, its start, and where it is refused."""

import pytest
import torch
import transformers

from effitrans.attention import AttentionMask, Linear, Site, swap_attention
from effitrans.attention.gate import DecayGate
from effitrans.errors import UsageError
from tests.architectures.families import FAMILIES
from tests.attention.cases import SCALE, Problem, build


@pytest.mark.parametrize("padding", ["none", "left", "random"])
@pytest.mark.parametrize("length", [1, 7, 64, 300])
def test_the_chunked_form_is_the_recurrence(length, padding):
    """S_t = g_t S_{t-1} + phi(k_t) v_t^T and z_t = g_t z_{t-1} + phi(k_t), position by position."""
    problem = Problem(causal=True, length=length, padding=padding, heads=4, groups=2)
    operator, (query, key, value) = build(Linear(decay_gate=True, chunk_size=3), problem), problem.inputs()
    got = operator(query, key, value, problem.mask(), scale=SCALE)
    tokens = problem.padding_mask(length)
    tokens = torch.ones(2, length, dtype=torch.bool) if tokens is None else tokens
    gates = operator.gate(key * SCALE**0.5).exp()
    for row in range(2):
        for head in range(4):
            group = head // 2
            state = torch.zeros(problem.dim, problem.dim, dtype=torch.float64)
            total = torch.zeros(problem.dim, dtype=torch.float64)
            for t in range(length):
                if tokens[row, t]:
                    features = torch.nn.functional.elu(key[row, group, t] * SCALE**0.5) + 1
                    state = gates[row, group, t] * state + torch.outer(features, value[row, group, t])
                    total = gates[row, group, t] * total + features
                features = torch.nn.functional.elu(query[row, head, t] * SCALE**0.5) + 1
                expected = features @ state / (features @ total).clamp(min=1e-30)
                torch.testing.assert_close(got[row, head, t], expected, rtol=1e-9, atol=1e-11)


def test_gates_that_close_stay_exact_in_float32():
    """Sums of logs far below the smallest exponent of float32 neither overflow nor blur what is near."""
    problem = Problem(causal=True, length=700, batch=1)
    operator, inputs = build(Linear(decay_gate=True), problem, torch.float32), problem.inputs(torch.float32)
    with torch.no_grad():
        operator.gate.bias.fill_(-60)
        operator.gate.weight.mul_(30)
    got = operator(*inputs, problem.mask(), scale=SCALE)
    exact = operator.double().reference(*(tensor.double() for tensor in inputs), problem.mask(), scale=SCALE)
    torch.testing.assert_close(got.double(), exact, rtol=2e-3, atol=2e-3)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(got.sum(), inputs))


def test_an_open_gate_is_no_gate():
    problem = Problem(causal=True)
    operator, inputs = build(Linear(decay_gate=True), problem), problem.inputs()
    with torch.no_grad():
        operator.gate.weight.zero_()
        operator.gate.bias.fill_(1e4)
    plain = build(Linear(), problem)(*inputs, problem.mask(), scale=SCALE)
    torch.testing.assert_close(operator(*inputs, problem.mask(), scale=SCALE), plain, rtol=1e-12, atol=1e-14)


def test_gates_start_spread_and_without_data():
    gates = DecayGate(8, 4)(torch.randn(2, 8, 5, 4)).exp().detach()
    assert torch.equal(gates, gates[:1, :, :1].expand_as(gates))
    kept = 1 - gates[0, :, 0]
    assert kept[0] == pytest.approx(2**-5, rel=1e-3)
    assert kept[-1] == pytest.approx(2**-12, rel=1e-2)
    assert (kept.diff() < 0).all()


def test_it_is_refused_where_attention_is_not_causal():
    with pytest.raises(UsageError, match="'linear' with decay_gate needs causal attention"):
        Linear(decay_gate=True).build(Site(num_heads=2, num_key_value_heads=2, head_dim=4))
    bert = next(family for family in FAMILIES if family.name == "bert").model()
    with pytest.raises(UsageError, match="decay_gate"):
        swap_attention(bert, Linear(decay_gate=True))
    problem = Problem(causal=True, length=9)
    operator = build(Linear(decay_gate=True), problem)
    with pytest.raises(UsageError, match="decay_gate"):
        operator(*problem.inputs(), AttentionMask(2, 9, 9), scale=SCALE)


def test_gates_are_trained_and_reloaded(tmp_path):
    model = swap_attention(
        next(family for family in FAMILIES if family.name == "llama").model(), Linear(decay_gate=True)
    )
    tokens = torch.arange(1, 13)[None]
    model(tokens, labels=tokens).loss.backward()
    gates = [module for module in model.modules() if isinstance(module, DecayGate)]
    assert gates
    for gate in gates:
        assert gate.weight.grad.abs().max() > 0
        torch.nn.init.normal_(gate.weight)
    model.save_pretrained(tmp_path / "model")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model.eval()(tokens).logits)
