"""The suite that every operator passes by being registered: equality with its dense reference, and the invariants."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effitrans.attention import (
    OPERATORS,
    AttentionMask,
    AttentionOperator,
    Full,
    Kernel,
    Linear,
    Local,
    Site,
    Strided,
    operator_config,
)
from effitrans.attention import linear as linear_module
from effitrans.errors import UsageError
from tests.attention.cases import CASES, CONFIGS, SCALE, Problem, build, case_id, is_causal, supported

PROBLEMS = [
    Problem(causal=True),
    Problem(),
    Problem(causal=True, padding="left", heads=6, groups=2, length=131, batch=3),
    Problem(padding="right", heads=3, groups=3, length=101, dim=5),
    Problem(padding="random", heads=4, groups=1, batch=1, length=257, dim=4),
    Problem(causal=True, padding="empty", heads=2, length=66),
    Problem(causal=True, length=1),
    Problem(keys=45, padding="right"),
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=case_id)
each_direction = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def run(operator: AttentionOperator, problem: Problem, inputs: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    return operator(*(inputs or problem.inputs()), problem.mask(), scale=SCALE)


def test_every_registered_operator_is_covered():
    assert CASES.keys() == OPERATORS.keys()
    assert all(config.name == name and isinstance(config, OPERATORS[name]) for name in CASES for config in CASES[name])


@each_config
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_equals_the_dense_reference_in_values_and_gradients(config, problem):
    if not supported(config, problem):
        with pytest.raises(UsageError, match=config.name):
            config.build(problem.site)
        return
    operator, inputs = build(config, problem), problem.inputs()
    leaves = [*inputs, *operator.parameters()]
    weight = torch.randn(problem.batch, problem.heads, problem.length, problem.dim, dtype=torch.float64)
    got = operator(*inputs, problem.mask(), scale=SCALE)
    expected = operator.reference(*inputs, problem.mask(), scale=SCALE)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    gradients = torch.autograd.grad((got * weight).sum(), leaves)
    for name, mine, theirs in zip(
        ["query", "key", "value", *dict(operator.named_parameters())],
        gradients,
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@each_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_reference_in_lower_precision(config, dtype):
    problem = Problem(causal=is_causal(config), padding="left")
    operator, inputs = build(config, problem, torch.float32).to(dtype), problem.inputs(dtype)
    got = operator(*inputs, problem.mask(), scale=SCALE)
    # of the rounded inputs and parameters: what is asked is that nothing more is lost
    exact = operator.float().reference(*(tensor.float() for tensor in inputs), problem.mask(), scale=SCALE)
    assert got.dtype == dtype
    tolerance = {torch.float32: 3e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(got.float(), exact, rtol=tolerance, atol=tolerance)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(got.float().sum(), inputs))


@each_config
def test_runs_under_autocast(config):
    problem = Problem(causal=is_causal(config))
    operator, inputs = build(config, problem, torch.float32), problem.inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(operator, problem, inputs)
    torch.testing.assert_close(got.float(), run(operator, problem, inputs), rtol=6e-2, atol=6e-2)


@each_config
@each_direction
@pytest.mark.parametrize("side", ["left", "right"])
def test_does_not_depend_on_the_amount_of_padding(config, causal, side):
    problem = Problem(causal=causal, length=80)
    operator, inputs = build(config, problem), problem.inputs()
    expected = run(operator, problem, inputs)
    for extra in (1, 37):
        widths = (0, 0, extra, 0) if side == "left" else (0, 0, 0, extra)
        padded = tuple(torch.nn.functional.pad(tensor, widths, value=3.0) for tensor in inputs)
        mask = torch.zeros(2, 80 + extra, dtype=torch.bool)
        tokens = slice(extra, None) if side == "left" else slice(80)
        mask[:, tokens] = True
        got = operator(*padded, AttentionMask(2, 80 + extra, 80 + extra, causal=causal, padding_BT=mask), scale=SCALE)
        torch.testing.assert_close(got[:, :, tokens], expected, rtol=1e-10, atol=1e-12)


@each_config
@each_direction
def test_does_not_depend_on_the_rest_of_the_batch(config, causal):
    problem = Problem(causal=causal, padding="left", batch=3)
    operator, inputs = build(config, problem), problem.inputs()
    together = run(operator, problem, inputs)
    mask = problem.padding_mask(problem.length)
    for row in range(3):
        alone = tuple(tensor[row : row + 1] for tensor in inputs)
        single = AttentionMask(1, 97, 97, causal=causal, padding_BT=mask[row : row + 1])
        torch.testing.assert_close(
            operator(*alone, single, scale=SCALE), together[row : row + 1], rtol=1e-10, atol=1e-12
        )
    loud = tuple(torch.cat([tensor[:1], tensor[1:] * 50]) for tensor in inputs)
    torch.testing.assert_close(operator(*loud, problem.mask(), scale=SCALE)[:1], together[:1], rtol=1e-10, atol=1e-12)


@each_config
def test_nothing_leaks_from_the_future(config):
    problem = Problem(causal=True)
    operator, inputs = build(config, problem), problem.inputs()
    out = run(operator, problem, inputs)
    gradients = torch.autograd.grad(out[:, :, :50].sum(), inputs)
    assert all(gradient[:, :, 50:].abs().max() == 0 for gradient in gradients)
    assert gradients[1][:, :, :50].abs().max() > 0
    later = tuple(torch.cat([tensor[:, :, :50], tensor[:, :, 50:] + 5], dim=2) for tensor in inputs)
    torch.testing.assert_close(run(operator, problem, later)[:, :, :50], out[:, :, :50], rtol=1e-10, atol=1e-12)


@each_config
@each_direction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_fully_masked_row_gives_zeros_and_finite_gradients(config, causal, dtype):
    problem = Problem(causal=causal, padding="empty", length=70)
    operator, inputs = build(config, problem, dtype), problem.inputs(dtype)
    out = run(operator, problem, inputs)
    assert out[0].abs().max() == 0
    gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient[0].abs().max() == 0 for gradient in gradients)


@each_config
def test_rows_before_the_first_token_give_zeros(config):
    problem = Problem(causal=True, padding="left")
    out = run(build(config, problem), problem)
    assert out[0, :, : 97 // 3].abs().max() == 0
    assert out[0, :, 97 // 3 :].abs().amax(-1).min() > 0


@each_config
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("steps", [[1] * 23, [9, 1, 1, 40, 1, 2, 33, 1]], ids=["tokens", "chunks"])
def test_decoding_from_the_state_equals_the_whole(config, padding, steps):
    length = sum(steps)
    problem = Problem(causal=True, padding=padding, length=length)
    operator, inputs = build(config, problem), problem.inputs()
    if not operator.has_state:
        pytest.skip("decodes from the cached keys and values")
    whole, state, start, outputs = run(operator, problem, inputs), {}, 0, []
    for step in steps:
        mask = AttentionMask(2, step, step, start, start, causal=True, padding_BT=problem.padding_mask(length))
        new = tuple(tensor[:, :, start : start + step] for tensor in inputs)
        outputs.append(operator(*new, mask, scale=SCALE, state=state))
        start += step
    torch.testing.assert_close(torch.cat(outputs, dim=2), whole, rtol=1e-9, atol=1e-11)
    assert all(tensor.shape[0] == problem.batch for tensor in state.values())


@each_config
def test_new_queries_on_all_cached_keys_equal_the_last_rows(config):
    problem = Problem(causal=True, padding="left")
    operator, (query, key, value) = build(config, problem), problem.inputs()
    whole = run(operator, problem, (query, key, value))
    for new in (1, 40):
        mask = AttentionMask(2, new, 97, q_offset=97 - new, causal=True, padding_BT=problem.padding_mask(97))
        last = operator(query[:, :, -new:], key, value, mask, scale=SCALE)
        torch.testing.assert_close(last, whole[:, :, -new:], rtol=1e-9, atol=1e-11)


@each_config
@each_direction
def test_gradcheck_in_float64(config, causal):
    problem = Problem(batch=1, heads=2, groups=1, length=5, dim=2, causal=causal, padding="left")
    operator, inputs = build(config, problem), problem.inputs()
    assert torch.autograd.gradcheck(lambda *tensors: run(operator, problem, tensors), inputs)


@each_config
def test_dropout_keeps_the_expectation(config):
    problem = Problem(causal=is_causal(config), length=40, batch=1, heads=2, groups=1)
    operator, inputs = build(config, problem), problem.inputs()
    exact = run(operator, problem, inputs)
    torch.manual_seed(0)
    runs = [operator(*inputs, problem.mask(), scale=SCALE, dropout=0.3).detach() for _ in range(150)]
    assert not torch.equal(runs[0], runs[1])
    error = torch.stack(runs).mean(0) - exact
    assert error.square().mean().sqrt() < 0.15 * exact.square().mean().sqrt()
    inputs_gradients = torch.autograd.grad(operator(*inputs, problem.mask(), scale=SCALE, dropout=0.3).sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in inputs_gradients)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes, views not counted, and of all that backward keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.saved: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out

    def keep(self, tensor: Tensor) -> Tensor:
        self.saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor


@each_config
@each_direction
def test_memory_grows_linearly_with_length(config, causal):
    """Counted, not measured: the largest tensor in forward and backward, and what is saved between them."""
    if config in (Full(), Kernel()):
        pytest.skip("quadratic by definition")
    measured = []
    for length in (1024, 2048):
        if isinstance(config, Strided):
            config = config.model_copy(update={"stride": round(length**0.5)})
        problem = Problem(batch=1, heads=2, groups=2, length=length, causal=causal, padding="left", dim=4)
        operator, inputs = build(config, problem, torch.float32), problem.inputs(torch.float32)
        with LargestTensor() as counter, torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
            run(operator, problem, inputs).sum().backward()
        measured.append((counter.elements, sum(counter.saved.values())))
    (largest, saved), (largest_twice, saved_twice) = measured
    # O(L sqrt L) with a stride near the root of the length
    growth = 2.2 * 2**0.5 if isinstance(config, Strided) else 2.2
    assert largest_twice <= growth * largest
    assert saved_twice <= growth * saved


@pytest.mark.parametrize("config", [configs[-1] for configs in CASES.values()], ids=case_id)
def test_compiles_and_gives_the_same(config):
    problem = Problem(causal=is_causal(config), padding="left", length=70)
    operator, inputs = build(config, problem), problem.inputs()
    torch._dynamo.reset()  # what earlier tests compiled counts against a limit that all share
    compiled = torch.compile(operator, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*inputs, problem.mask(), scale=SCALE), run(operator, problem, inputs), rtol=1e-12, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("config", [configs[-1] for configs in CASES.values()], ids=case_id)
def test_one_graph_serves_all_lengths(config):
    causal = is_causal(config)
    operator, counter = config.build(Problem(causal=causal).site), CompileCounter()

    def call(query: Tensor, key: Tensor, value: Tensor, padding: Tensor) -> Tensor:
        length = query.shape[2]
        mask = AttentionMask(query.shape[0], length, length, causal=causal, padding_BT=padding)
        return operator(query, key, value, mask, scale=SCALE)

    compiled = torch.compile(call, backend=counter, dynamic=True)
    for length in (70, 97, 133, 230):
        problem = Problem(causal=causal, padding="left", length=length)
        arguments = (*problem.inputs(torch.float32), problem.padding_mask(length))
        with torch.no_grad():
            torch.testing.assert_close(compiled(*arguments), call(*arguments), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@each_config
def test_the_spec_rebuilds_it(config):
    operator = build(config, Problem(causal=is_causal(config)))
    rebuilt = AttentionOperator.from_spec(operator.spec())
    assert type(rebuilt) is type(operator)
    assert rebuilt.config == config
    assert rebuilt.spec() == operator.spec()
    rebuilt.to(torch.float64).load_state_dict(operator.state_dict())
    problem = Problem(causal=is_causal(config))
    torch.testing.assert_close(run(rebuilt, problem), run(operator, problem), rtol=0, atol=0)


@each_config
def test_heads_can_be_removed(config):
    problem = Problem(causal=is_causal(config), heads=6, groups=3)
    operator, (query, key, value) = build(config, problem), problem.inputs()
    whole = run(operator, problem, (query, key, value))
    pruned = copy.deepcopy(operator)
    pruned.keep_heads([0, 1, 4, 5], [0, 2])
    smaller = replace(problem, heads=4, groups=2)
    got = run(pruned, smaller, (query[:, [0, 1, 4, 5]], key[:, [0, 2]], value[:, [0, 2]]))
    torch.testing.assert_close(got, whole[:, [0, 1, 4, 5]], rtol=1e-12, atol=1e-12)
    assert AttentionOperator.from_spec(pruned.spec()).to(torch.float64).load_state_dict(pruned.state_dict())


@each_config
@pytest.mark.parametrize("feature", ["position_bias", "softcap", "s_aux"])
def test_what_it_cannot_honour_is_refused_and_the_rest_equals_the_reference(config, feature):
    problem = Problem(padding="right", heads=4, groups=4)
    operator, inputs = build(config, problem), problem.inputs()
    bias = torch.randn(1, 4, 97, 97, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    value = {"position_bias": bias, "softcap": 2.0, "s_aux": sinks}[feature]
    if feature not in operator.honours:
        with pytest.raises(UsageError, match=f"{config.name!r} cannot honour"):
            operator(*inputs, problem.mask(), scale=SCALE, **{feature: value})
        return
    leaves = [*inputs, *([value] if isinstance(value, Tensor) else [])]
    got = operator(*inputs, problem.mask(), scale=SCALE, **{feature: value})
    expected = operator.reference(*inputs, problem.mask(), scale=SCALE, **{feature: value})
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    for mine, theirs in zip(
        torch.autograd.grad(got.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


@each_config
def test_a_model_s_own_window_is_honoured_or_refused(config):
    problem = Problem(causal=is_causal(config))
    operator, inputs = build(config, problem), problem.inputs()
    mask = AttentionMask(2, 97, 97, causal=is_causal(config), window=4)
    if "sliding_window" not in operator.honours or getattr(config, "num_global_tokens", 0):
        with pytest.raises(UsageError, match="sliding window"):
            operator(*inputs, mask, scale=SCALE)
        return
    got = operator(*inputs, mask, scale=SCALE)
    torch.testing.assert_close(got, operator.reference(*inputs, mask, scale=SCALE), rtol=1e-9, atol=1e-11)


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 3))
    return Problem(
        batch=draw(st.integers(1, 3)),
        groups=groups,
        heads=groups * draw(st.integers(1, 3)),
        length=draw(st.integers(1, 150)),
        dim=draw(st.integers(1, 7)),
        causal=draw(st.booleans()),
        padding=draw(st.sampled_from(["none", "left", "right", "random", "empty"])),
        seed=draw(st.integers(0, 1000)),
    )


configs = {
    "full": st.just(operator_config("full")),
    "local": st.builds(
        Local,
        window=st.integers(1, 60),
        dilation=st.integers(1, 5),
        two_sided=st.booleans(),
        num_global_tokens=st.integers(0, 5),
    ),
    "linear": st.one_of(
        st.builds(
            Linear,
            feature_map=st.sampled_from(["elu", "relu"]),
            chunk_size=st.integers(1, 40),
            decay_gate=st.booleans(),
        ),
        st.builds(
            Linear,
            feature_map=st.sampled_from(["taylor", "hedgehog"]),
            feature_dim=st.none() | st.integers(1, 6),
            chunk_size=st.integers(1, 40),
        ),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_any_configuration_equals_the_reference(name):
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(configs.get(name, st.sampled_from(CASES[name])), problems())
    def check(config, problem):
        if not supported(config, problem):
            return
        operator, inputs = build(config, problem), problem.inputs()
        got, expected = run(operator, problem, inputs), operator.reference(*inputs, problem.mask(), scale=SCALE)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
        mine = torch.autograd.grad(got.sum(), inputs, retain_graph=True)
        theirs = torch.autograd.grad(expected.sum(), inputs)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)

    check()


def test_segments_of_wide_features_equal_one_piece(monkeypatch):
    config = Linear(feature_map="taylor", chunk_size=8)
    for causal in (False, True):
        problem = Problem(causal=causal, padding="left")
        operator, inputs = build(config, problem), problem.inputs()
        whole = run(operator, problem, inputs)
        expected = torch.autograd.grad(whole.square().sum(), inputs)
        with monkeypatch.context() as patch:
            patch.setattr(linear_module, "SEGMENT_BYTES", 1)
            parts = run(operator, problem, inputs)
            torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
            for mine, theirs in zip(torch.autograd.grad(parts.square().sum(), inputs), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_sums_of_linear_attention_do_not_saturate_in_half_precision():
    length = 5000
    for dtype in (torch.float16, torch.bfloat16):
        query = key = torch.full((1, 1, length, 4), 8.0, dtype=dtype)
        value = torch.linspace(0, 1, length, dtype=dtype).view(1, 1, -1, 1).expand(-1, -1, -1, 4)
        site = Site(num_heads=1, num_key_value_heads=1, head_dim=4, causal=True)
        out = Linear().build(site)(query, key, value, AttentionMask(1, length, length, causal=True), scale=1.0)
        assert abs(float(out[0, 0, -1, 0]) - 0.5) < 0.01


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("localx", {}, "did you mean 'local'"),
        ("local", {"windw": 3}, "did you mean 'window'"),
        ("local", {"window": 0}, "window"),
        ("linear", {"feature_map": "cosine"}, "feature_map"),
        ("linear", {"feature_map": "elu", "feature_dim": 3}, "feature_dim has no effect"),
    ],
)
def test_wrong_settings_are_refused(name, values, message):
    with pytest.raises(UsageError, match=message):
        operator_config(name, values)
