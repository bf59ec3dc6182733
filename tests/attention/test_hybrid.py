"""What is special about hybrid attention and Performer: limits, scales, one normaliser, random features."""

import pytest
import torch

from effitrans.attention import AttentionMask, Hybrid, Performer, Site, hybrid, operator_config, reference, weighted
from effitrans.attention.features import RandomFeatures
from effitrans.errors import UsageError
from tests.attention.cases import SCALE, Problem, build

SITE = Site(num_heads=1, num_key_value_heads=1, head_dim=8, causal=True)
both_directions = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@both_directions
@pytest.mark.parametrize("variant", ["lolcats", "scatterbrain"])
def test_a_window_as_long_as_the_input_is_softmax_attention(variant, causal):
    problem = Problem(causal=causal, padding="left")
    inputs = problem.inputs()
    got = build(Hybrid(window=97, variant=variant), problem)(*inputs, problem.mask(), scale=SCALE)
    expected = reference.softmax_attention(*inputs, problem.mask().dense(), scale=SCALE)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_lolcats_weighs_its_two_parts_as_the_formula_says():
    """Two keys, window 1: the older one goes through the features, the newer one has the score of its maximum."""
    operator = Hybrid(window=1).build(SITE).double()
    with torch.no_grad():
        operator.mixing.fill_(1.5)
    query, key = torch.randn(2, 1, 1, 2, 8, dtype=torch.float64)
    value = torch.eye(2, 8, dtype=torch.float64).view(1, 1, 2, 8)
    out = operator(query, key, value, AttentionMask(1, 2, 2, causal=True), scale=1.0)
    near = torch.sigmoid(torch.tensor(1.5, dtype=torch.float64))
    features = [torch.softmax(torch.cat([x, -x]), 0) for x in (query[0, 0, 1], key[0, 0, 0])]
    far = features[0] @ features[1]
    torch.testing.assert_close(out[0, 0, 1, :2], torch.stack([far, near]) / (far + near))


@both_directions
@pytest.mark.parametrize("padding", ["none", "left", "empty"])
def test_short_inputs_are_written_out_to_the_same_result(causal, padding, monkeypatch):
    problem = Problem(causal=causal, padding=padding)
    operator, results = build(Hybrid(window=5), problem), {}
    for short in (0, 1000):
        monkeypatch.setattr(hybrid, "SHORT", short)
        inputs = [tensor.requires_grad_() for tensor in problem.inputs()]
        out = operator(*inputs, problem.mask(), scale=SCALE)
        results[short] = [out, *torch.autograd.grad(out.square().sum(), [*inputs, *operator.parameters()])]
    torch.testing.assert_close(results[0], results[1000], rtol=1e-8, atol=1e-10)


@both_directions
def test_the_random_remainder_estimates_softmax_and_more_features_estimate_better(causal):
    problem = Problem(causal=causal, batch=1, length=120, dim=8)
    inputs = problem.inputs()
    exact = reference.softmax_attention(*inputs, problem.mask().dense(), scale=0.2)

    def error(config) -> float:
        out = build(config, problem)(*inputs, problem.mask(), scale=0.2)
        return float((out - exact).detach().square().mean().sqrt())

    few, many = (error(Performer(num_features=count, seed=1)) for count in (16, 2048))
    assert many < 0.5 * few
    corrected = error(Hybrid(window=30, variant="scatterbrain", num_features=16, seed=1))
    assert corrected < 0.9 * few


def test_random_features_are_orthogonal_and_unbiased():
    features = RandomFeatures(num_features=20, head_dim=8, seed=0).double()
    for block in features.projection[:8], features.projection[8:16]:
        gram = block @ block.T
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-5)
    assert features.projection.norm(dim=1).std() > 0.1
    large = RandomFeatures(num_features=100_000, head_dim=8, seed=1).double()
    query, key = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.25
    torch.testing.assert_close(large.plain(query) @ large.plain(key).T, torch.exp(query @ key.T), rtol=0.03, atol=0)


def test_features_are_redrawn_and_saved():
    one, other = (Performer(num_features=8, seed=seed).build(SITE) for seed in (0, 1))
    assert not torch.equal(one.features.projection, other.features.projection)
    one.redraw(1)
    assert torch.equal(one.features.projection, other.features.projection)
    one.redraw(2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.features.projection, other.features.projection)


@pytest.mark.parametrize("config", [Performer(num_features=64), Hybrid(window=4, variant="scatterbrain")], ids=str)
@both_directions
def test_long_keys_do_not_overflow_or_silence_what_came_before(config, causal):
    """One token of the sequence is so long that its features leave the range of float32 by far."""
    problem = Problem(causal=causal, batch=1, heads=2, length=200, dim=8)
    query, key, value = (tensor.detach() for tensor in problem.inputs())
    key[:, :, 120] *= 60
    operator = build(config, problem, torch.float64)
    exact = operator(query, key, value, problem.mask(), scale=1.0)
    inputs = [tensor.float().requires_grad_() for tensor in (query, key, value)]
    out = operator.float()(*inputs, problem.mask(), scale=1.0)
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), inputs))
    plain = operator(query.float(), key.float(), value.float(), problem.mask(), scale=1.0)
    assert plain[:, :, :120].abs().amax(-1).min() > 0


def test_sums_over_many_blocks_with_very_different_peaks():
    """More blocks than one product takes, whose weights span hundreds of powers of e."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.rand(2, 150, 3, generator=generator, dtype=torch.float64)
    peak = torch.randn(2, 150, generator=generator, dtype=torch.float64).cumsum(1) * 20
    got, scale = weighted._exclusive_sums(sums, peak)
    for index in (1, 63, 64, 65, 128, 149):
        expected = (sums[:, :index] * torch.exp(peak[:, :index] - scale[:, index, None])[..., None]).sum(1)
        torch.testing.assert_close(got[:, index], expected)
        assert torch.equal(scale[:, index], peak[:, :index].amax(1))
    assert got[:, 0].abs().max() == 0


def test_the_state_does_not_grow():
    for config in (Hybrid(window=5), Hybrid(window=5, variant="scatterbrain", num_features=9), Performer()):
        operator, state, sizes = config.build(SITE), {}, []
        for step in range(12):
            new = torch.randn(3, 2, 1, 1, 8)
            mask = AttentionMask(2, 1, 1, step, step, causal=True)
            operator(*new, mask, scale=SCALE, state=state)
            sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in state.values()))
        assert sizes[6] == sizes[-1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "lolcats", "num_features": 8}, "num_features has no effect with variant='lolcats'"),
        ({"variant": "scatterbrain", "feature_dim": 8}, "feature_dim has no effect"),
        ({"variant": "sparse"}, "variant"),
        ({"window": 0}, "window"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        operator_config("hybrid", values)


@pytest.mark.parametrize(
    "config",
    [
        Hybrid(window=5),
        Hybrid(window=40, variant="scatterbrain", num_features=8),
        Performer(num_features=8, chunk_size=16),
    ],
    ids=["lolcats", "scatterbrain", "performer"],
)
@both_directions
def test_segments_equal_one_piece(config, causal, monkeypatch):
    problem = Problem(causal=causal, padding="left", length=150)
    operator, inputs = build(config, problem), problem.inputs()
    leaves = [*inputs, *operator.parameters()]

    def outcome() -> list[torch.Tensor]:
        out = operator(*inputs, problem.mask(), scale=SCALE)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    whole = outcome()
    for limit in (1, 200_000):
        monkeypatch.setattr(weighted, "CPU_SEGMENT_BYTES", limit)
        for recompute in (0, 2**30):
            monkeypatch.setattr(weighted, "RECOMPUTE_BYTES", recompute)
            for got, expected in zip(outcome(), whole, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
