"""Which units go: exact counts, order, floors, rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effitrans.errors import UsageError
from effitrans.pruning.selection import select
from effitrans.pruning.sites import PruningSite


def site(name: str, units: int, blocks: int = 1, kind: str = "head") -> PruningSite:
    return PruningSite(name=name, kind=kind, units=units, slices=(), blocks=blocks)  # type: ignore[arg-type]


def test_least_important_go_first() -> None:
    scores = [torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([4.0, 3.0, 2.0, 1.0])]
    assert select([site("a", 4), site("b", 4)], scores, 0.5) == [[1, 2], [2, 3]]


def test_ties_fall_to_the_lower_index() -> None:
    assert select([site("a", 4)], [torch.zeros(4)], 0.5) == [[0, 1]]


def test_global_ranks_over_sites() -> None:
    scores = [torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([10.0, 10.0, 0.1, 0.2])]
    assert select([site("a", 4), site("b", 4)], scores, 0.25, scope="global") == [[], [2, 3]]


def test_global_normalises_scores() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert select([site("a", 4), site("b", 4)], [scores, 1000 * scores], 0.5, scope="global") == [[0, 1], [0, 1]]


def test_global_leaves_one_everywhere() -> None:
    scores = [torch.zeros(4), torch.ones(4)]
    assert select([site("a", 4), site("b", 4)], scores, 0.5, scope="global") == [[0, 1, 2], [0]]
    assert select([site("a", 4), site("b", 4)], scores, 0.5, scope="global", minimum=2) == [[0, 1], [0, 1]]


def test_blocks_lose_equally_many() -> None:
    scores = torch.tensor([5.0, 1.0, 2.0, 9.0, 0.0, 0.0])
    assert select([site("a", 6, blocks=2)], [scores], 1 / 3) == [[1, 4]]


@pytest.mark.parametrize(("ratio", "left"), [(0.5, 32), (0.3, 48), (0.9, 8)])
def test_widths_are_multiples(ratio: float, left: int) -> None:
    scores = torch.rand(64, generator=torch.Generator().manual_seed(0))
    (removed,) = select([site("a", 64, kind="neuron")], [scores], ratio, multiple_of=8)
    assert 64 - len(removed) == left
    assert removed == sorted(scores.argsort()[: 64 - left].tolist())


def test_odd_widths_come_down_to_multiples() -> None:
    (removed,) = select([site("a", 70, kind="neuron")], [torch.rand(70)], 0.5, multiple_of=8)
    assert 70 - len(removed) == 32


def test_emptying_a_layer_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"removes every head of layers\.1 \(2 of 2\).*there is 0\.5;") as raised:
        select([site("layers.0", 40), site("layers.1", 2)], [torch.rand(40), torch.rand(2)], 0.9)
    assert "scope='global'" in str(raised.value)


def test_floor_for_each_layer() -> None:
    assert select([site("a", 4)], [torch.arange(4.0)], 1.0, minimum=1) == [[0, 1, 2]]


def test_unreachable_global_ratio_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at most 0\.75 can go"):
        select([site("a", 4), site("b", 4)], [torch.rand(4), torch.rand(4)], 0.95, scope="global")


def test_single_group_names_the_way_out() -> None:
    with pytest.raises(UsageError, match="grouped_queries='queries'"):
        select([site("a", 1)], [torch.rand(1)], 0.6)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[PruningSite], list[Tensor], float, int]:
    count = draw(st.integers(1, 4))
    blocks = draw(st.sampled_from([1, 1, 2, 3]))
    sizes = [blocks * draw(st.integers(2, 12)) for _ in range(count)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    sites = [site(f"s{i}", size, blocks) for i, size in enumerate(sizes)]
    scores = [torch.rand(size, generator=generator) for size in sizes]
    multiple = draw(st.sampled_from([1, 2, 4])) if blocks == 1 else 1
    return sites, scores, draw(st.floats(0, 0.5)), multiple


@settings(max_examples=60, deadline=None)
@given(problem=problems(), scope=st.sampled_from(["layer", "global"]))
def test_properties(problem: tuple[list[PruningSite], list[Tensor], float, int], scope) -> None:
    sites, scores, ratio, multiple = problem
    chosen = select(sites, scores, ratio, scope=scope, multiple_of=multiple, minimum=1)
    assert chosen == select(sites, scores, ratio, scope=scope, multiple_of=multiple, minimum=1)
    step = max(s.blocks for s in sites) * multiple
    for place, score, removed in zip(sites, scores, chosen, strict=True):
        left = set(range(place.units)) - set(removed)
        assert left
        size = place.units // place.blocks
        for block in range(place.blocks):
            inside = range(block * size, (block + 1) * size)
            gone = [float(score[u]) for u in removed if u in inside]
            assert len(gone) == len(removed) // place.blocks
            assert max(gone, default=-1) <= min(float(score[u]) for u in left if u in inside)
        if scope == "layer":
            floor = place.units - (multiple if place.units >= 2 * multiple else 1) * place.blocks
            assert abs(len(removed) - ratio * place.units) <= step / 2 + max(0, ratio * place.units - floor) + 1e-6
        if multiple > 1 and removed and place.units >= 2 * multiple:
            assert len(left) % multiple == 0
    if scope == "global":
        total = sum(s.units for s in sites)
        assert sum(map(len, chosen)) <= ratio * total + step / 2 + 1e-6
