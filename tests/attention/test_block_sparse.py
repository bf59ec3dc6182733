"""What is particular to block-sparse attention: which blocks are drawn, and layouts."""

import pytest
import torch

from effitrans.attention import AttentionMask, BlockSparse, Full, block_sparse
from effitrans.attention.block_sparse import consistent_draws
from effitrans.attention.grid import cut
from effitrans.errors import UsageError
from tests.attention.cases import LAYOUT, SCALE, Problem, build, case_id


def pattern(config: BlockSparse, length: int, causal: bool) -> torch.Tensor:
    """bool [N, N]: which block sees which."""
    mask = AttentionMask(1, length, length, causal=causal)
    operator = config.build(Problem(causal=causal).site)
    return operator._pattern(cut(mask, config.block_size), mask)[0]


def test_draws_change_only_to_the_new_value_as_the_count_grows():
    numbers = torch.arange(2000).unsqueeze(0)
    before = consistent_draws(3, numbers, 2, torch.full_like(numbers, 1))
    for count in range(2, 40):
        after = consistent_draws(3, numbers, 2, torch.full_like(numbers, count))
        changed = after != before
        assert (after[changed] == count - 1).all()
        assert 0.4 / count < changed.double().mean() < 2.0 / count
        before = after
    shares = before.flatten().bincount(minlength=39).double() * 39 / before.numel()
    assert 0.5 < shares.min() < shares.max() < 1.5
    assert (consistent_draws(3, numbers, 2, torch.zeros_like(numbers)) == -1).all()
    assert (consistent_draws(4, numbers, 2, torch.full_like(numbers, 39)) != before).double().mean() > 0.9
    assert (before[..., 0] != before[..., 1]).double().mean() > 0.9


def test_causal_random_blocks_are_the_same_at_every_length():
    config = BlockSparse(block_size=2, num_random_blocks=2)
    short, long = pattern(config, 40, causal=True), pattern(config, 160, causal=True)
    assert torch.equal(short.tril(), long[:20, :20].tril())
    assert (long.tril().sum(-1) > 4).any(), "random blocks beyond window and global ones"


def test_bidirectional_random_blocks_mostly_stay_as_a_sequence_grows():
    config = BlockSparse(block_size=2, num_global_blocks=0)
    short, long = pattern(config, 100, causal=False), pattern(config, 102, causal=False)
    assert (short != long[:50, :50]).sum() <= 12
    assert 3 < short.sum(-1).double().mean() <= 6


def test_the_pattern_is_a_window_the_first_blocks_and_random_ones():
    seen = pattern(BlockSparse(block_size=3, num_global_blocks=2, num_random_blocks=1), 90, causal=False)
    rows = torch.arange(30)
    window = (rows[:, None] - rows).abs() < 2
    assert seen[:2].all()
    assert seen[:, :2].all()
    assert seen[window].all()
    beyond = (seen & ~window)[2:, 2:].sum(-1)
    assert (beyond == 1).all()


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_a_layout_is_followed(causal):
    config = BlockSparse(block_size=2, layout=((0,), (1, 0), (2,), (0, 3), (4,), (0, 1, 2, 3, 4, 5), (6, 2)))
    problem = Problem(length=13, causal=causal)
    query, key, value = problem.inputs()
    allowed = torch.zeros(14, 14, dtype=torch.bool)
    for row, columns in enumerate(config.layout):
        for column in columns:
            allowed[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
    allowed = allowed[:13, :13].tril() if causal else allowed[:13, :13]
    dense = AttentionMask(2, 13, 13, allowed=allowed[None, None])
    expected = Full().build(problem.site)(query, key, value, dense, scale=SCALE)
    got = build(config, problem)(query, key, value, problem.mask(), scale=SCALE)
    torch.testing.assert_close(got, expected)


def test_inputs_beyond_the_layout_are_refused():
    problem = Problem(length=9)
    with pytest.raises(UsageError, match="layout of 2 blocks of 4 positions, and the input has 9"):
        build(BlockSparse(block_size=4, layout=((0,), (1,))), problem)(*problem.inputs(), problem.mask(), scale=SCALE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": [[0], [2]]}, "layout row 1 is .2.: expected different block numbers from 0 to 1"),
        ({"layout": [[0], []]}, "layout row 1 is"),
        ({"layout": [[0, 0]]}, "layout row 0 is"),
        ({"layout": [[0]], "window_blocks": 3}, "window_blocks: without effect beside a layout"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        BlockSparse.parse(settings)


@pytest.mark.parametrize("config", [BlockSparse(block_size=4), BlockSparse(block_size=8, layout=LAYOUT)], ids=case_id)
def test_pieces_that_need_no_gradient_equal_the_whole(config, monkeypatch):
    problem = Problem(padding="left", batch=3)
    operator, inputs = build(config, problem), problem.inputs()
    whole = operator(*inputs, problem.mask(), scale=SCALE)
    monkeypatch.setattr(block_sparse, "SEGMENT_BYTES", 3000)
    with torch.no_grad():
        pieces = operator(*inputs, problem.mask(), scale=SCALE)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


def test_half_precision_sums_the_gradient_of_a_shared_block_exactly():
    """A global key is gathered once for every block; adding up thousands of parts in bfloat16 would lose most."""
    config = BlockSparse(block_size=1, window_blocks=1, num_global_blocks=1, num_random_blocks=0)
    problem = Problem(batch=1, heads=1, groups=1, length=3000, dim=2, causal=True)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        query = torch.zeros(1, 1, 3000, 2, dtype=dtype)
        value = torch.zeros(1, 1, 3000, 2, dtype=dtype, requires_grad=True)
        config.build(problem.site)(query, query, value, problem.mask(), scale=1.0).sum().backward()
        gradients.append(float(value.grad[0, 0, 0, 0]))
    assert gradients[1] == pytest.approx(gradients[0], rel=0.01)
