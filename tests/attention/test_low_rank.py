"""What is special about nystrom, linformer and kernel attention: where they are exact, and what they refuse."""

import pytest
import torch

from effitrans.attention import AttentionMask, Kernel, Linformer, Nystrom, Site, operator_config, reference
from effitrans.attention.landmarks import segment_means, spaced_tokens
from effitrans.attention.nystrom import pseudo_inverse
from effitrans.errors import UsageError
from tests.attention.cases import SCALE, Problem, build

SITE = Site(num_heads=2, num_key_value_heads=1, head_dim=8)


def distance(config, problem: Problem, exact: torch.Tensor) -> float:
    out = build(config, problem)(*problem.inputs(), problem.mask(), scale=SCALE)
    return float((out - exact).detach().square().mean().sqrt())


@pytest.mark.parametrize("padding", ["none", "left", "random"])
def test_nystrom_is_exact_with_a_landmark_a_token(padding):
    problem = Problem(padding=padding, length=12, dim=12)
    exact = reference.softmax_attention(*problem.inputs(), problem.mask().dense(), scale=SCALE)
    errors = [distance(Nystrom(num_landmarks=12, iterations=count), problem, exact) for count in (2, 40)]
    assert errors[1] < 1e-8 < errors[0]
    assert distance(Nystrom(num_landmarks=3, iterations=40), problem, exact) > 1e-3


def test_the_pseudo_inverse_converges_and_keeps_empty_rows():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.softmax(torch.randn(3, 9, 9, generator=generator, dtype=torch.float64) * 2, dim=-1)
    torch.testing.assert_close(pseudo_inverse(matrix, 40), torch.linalg.inv(matrix), rtol=1e-8, atol=1e-8)
    together = pseudo_inverse(torch.stack([matrix[0], matrix[1] * 100]), 3)[0]
    assert torch.equal(together, pseudo_inverse(matrix[:1], 3)[0])
    matrix[:, 7:], matrix[:, :, 7:] = 0, 0
    inverse = pseudo_inverse(matrix, 40)
    assert inverse[:, 7:].abs().max() == inverse[:, :, 7:].abs().max() == 0
    torch.testing.assert_close(inverse, torch.linalg.pinv(matrix), rtol=1e-8, atol=1e-8)
    assert pseudo_inverse(torch.zeros(4, 4), 6).abs().max() == 0


def test_the_convolution_starts_as_nothing_and_adds_the_neighbours():
    problem = Problem(padding="left")
    inputs = problem.inputs()
    plain, residual = (Nystrom(num_landmarks=5, convolution=span).build(problem.site).double() for span in (None, 3))
    expected = plain(*inputs, problem.mask(), scale=SCALE)
    torch.testing.assert_close(residual(*inputs, problem.mask(), scale=SCALE), expected)
    with torch.no_grad():
        residual.convolution[:, 0] = 1
    got = residual(*inputs, problem.mask(), scale=SCALE) - expected
    before = reference.repeat_heads(inputs[2], 4)[:, :, :-1]
    torch.testing.assert_close(got[1, :, 1:], before[1])
    assert got[0, :, : 97 // 3 + 1].abs().max() < 1e-12


def test_landmarks_are_counted_in_tokens():
    values = torch.arange(1.0, 8.0, dtype=torch.float64).view(1, 1, 7, 1)
    holes = torch.tensor([[True, False, True, True, False, True, True]])
    means, present = segment_means(values, holes, 2)
    assert means.flatten().tolist() == [(1 + 3 + 4) / 3, (6 + 7) / 2]
    assert present.all()
    means, present = segment_means(values[:, :, :3], None, 5)
    assert means.flatten().tolist() == [1, 2, 3, 0, 0]
    assert present.tolist() == [[True, True, True, False, False]]
    position, present = spaced_tokens(holes, 7, 3, torch.device("cpu"))
    assert position.tolist() == [[0, 3, 6]]
    position, present = spaced_tokens(holes, 7, 6, torch.device("cpu"))
    assert position[present].tolist() == [0, 2, 3, 5, 6]


def test_linformer_with_the_identity_is_softmax_attention():
    problem = Problem(keys=45)
    operator = Linformer(rank=45, max_length=60).build(problem.site).double()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.copy_(torch.eye(60, 45))
    inputs = problem.inputs()
    expected = reference.softmax_attention(*inputs, scale=SCALE)
    torch.testing.assert_close(operator(*inputs, problem.mask(), scale=SCALE), expected, rtol=1e-9, atol=1e-11)


def test_linformer_takes_shorter_inputs_and_refuses_longer_ones():
    operator = Linformer(rank=4, max_length=20).build(SITE)
    for length in (1, 19, 20):
        query = torch.randn(1, 2, length, 8)
        mask = AttentionMask(1, length, length)
        assert operator(query, query[:, :1], query[:, :1], mask, scale=1.0).isfinite().all()
    query = torch.randn(1, 2, 21, 8)
    with pytest.raises(UsageError, match="max_length=20, received 21 keys: shorten the input, or swap in"):
        operator(query, query[:, :1], query[:, :1], AttentionMask(1, 21, 21), scale=1.0)


def test_linformer_s_projections_are_shared_as_asked_and_drawn_from_the_seed():
    site = SITE.model_copy(update={"num_heads": 6, "num_key_value_heads": 3})
    shapes = {
        (heads, both): {name: tuple(parameter.shape) for name, parameter in config.build(site).named_parameters()}
        for heads in (False, True)
        for both in (False, True)
        for config in [Linformer(rank=4, max_length=9, share_heads=heads, share_key_value=both)]
    }
    assert shapes[False, False] == {"key_projection": (3, 9, 4), "value_projection": (3, 9, 4)}
    assert shapes[True, True] == {"key_projection": (1, 9, 4)}
    torch.manual_seed(3)
    weights = [Linformer(seed=seed).build(SITE).key_projection for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert abs(float(weights[0].detach().std()) * 128**0.5 - 1) < 0.01


def test_the_accelerated_kernel_is_exact_with_every_token_a_landmark():
    problem = Problem(padding="random", length=20)
    exact = build(Kernel(), problem)(*problem.inputs(), problem.mask(), scale=SCALE)
    errors = [
        distance(Kernel(num_landmarks=count, regularization=r), problem, exact)
        for count, r in ((40, 1e-9), (40, 1e-2), (4, 1e-2))
    ]
    assert errors[0] < 1e-6 < errors[1] < errors[2]


def test_the_kernel_is_the_written_one():
    """exp(-scale |q - k|^2 / 2) for two keys, so a factor of two in the exponent shows."""
    query = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    key = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]]]], dtype=torch.float64)
    value = torch.eye(2, dtype=torch.float64).view(1, 1, 2, 2)
    site = Site(num_heads=1, num_key_value_heads=1, head_dim=2)
    out = Kernel().build(site)(query, key, value, AttentionMask(1, 1, 2), scale=0.5)
    weights = torch.exp(-0.25 * torch.tensor([1.0, 9.0], dtype=torch.float64))
    torch.testing.assert_close(out.flatten(), weights / weights.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_keys_keep_their_norms_in_half_precision(dtype):
    """|k|^2 / 2 near 500, which bfloat16 rounds to a multiple of 2: rounded alone it would move weights by e^1."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 50, 64, generator=generator).to(dtype) for _ in range(3))
    key = key * 4
    operator = Kernel().build(SITE.model_copy(update={"num_key_value_heads": 2, "head_dim": 64}))
    got = operator(query, key, value, AttentionMask(1, 50, 50), scale=1.0)
    exact = operator.reference(*(x.double() for x in (query, key, value)), AttentionMask(1, 50, 50), scale=1.0)
    error = (got.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]


@pytest.mark.parametrize("factor", [1e-3, 1.0, 30.0])
def test_the_accelerated_kernel_stays_finite_at_any_scale(factor):
    """Equal tokens make the landmarks' matrix singular; distant ones make all its estimates vanish."""
    inputs = [(torch.randn(2, heads, 300, 8) * factor).requires_grad_() for heads in (2, 1, 1)]
    out = Kernel(num_landmarks=32).build(SITE)(*inputs, AttentionMask(2, 300, 300), scale=1.0)
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.square().sum(), inputs))


@pytest.mark.parametrize("config", [Nystrom(), Linformer(), Kernel(num_landmarks=8)], ids=lambda config: config.name)
def test_causal_attention_is_refused_by_name(config):
    with pytest.raises(UsageError, match=f"'{config.name}' cannot honour causal attention"):
        config.build(SITE.model_copy(update={"causal": True}))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("kernel", {"regularization": 0.1}, "regularization has no effect without num_landmarks"),
        ("kernel", {"num_landmarks": 1}, "num_landmarks"),
        ("nystrom", {"convolution": 4}, "an odd number"),
        ("linformer", {"rank": 0}, "rank"),
    ],
)
def test_wrong_settings_are_refused(name, values, message):
    with pytest.raises(UsageError, match=message):
        operator_config(name, values)
