"""What is particular to strided attention: its two patterns, their cost, and scores computed block by block."""

import pytest
import torch

from effitrans.attention import AttentionMask, Full, Strided, strided
from effitrans.errors import UsageError
from tests.attention.cases import SCALE, Problem, build, case_id


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    "config", [Strided(stride=4), Strided(pattern="fixed", stride=5, summary_tokens=2)], ids=case_id
)
def test_the_pattern_is_that_of_the_paper(config, causal):
    problem = Problem(length=43, causal=causal)
    allowed = torch.zeros(43, 43, dtype=torch.bool)
    for i in range(43):
        for j in range(i + 1 if causal else 43):
            if config.pattern == "strided":
                allowed[i, j] = abs(i - j) < 4 or (i - j) % 4 == 0
            else:
                allowed[i, j] = i // 5 == j // 5 or j % 5 in (3, 4)
    query, key, value = problem.inputs()
    dense = AttentionMask(2, 43, 43, allowed=allowed[None, None])
    expected = Full().build(problem.site)(query, key, value, dense, scale=SCALE)
    torch.testing.assert_close(build(config, problem)(query, key, value, problem.mask(), scale=SCALE), expected)


@pytest.mark.parametrize("config", [Strided(stride=8), Strided(pattern="fixed", stride=16)], ids=case_id)
def test_blocks_in_turns_equal_all_at_once(config, monkeypatch):
    problem = Problem(padding="left", heads=6, groups=3, causal=True)
    operator, inputs = build(config, problem), problem.inputs()
    whole = operator(*inputs, problem.mask(), scale=SCALE)
    monkeypatch.setattr(strided, "SEGMENT_BYTES", 1)
    with torch.no_grad():
        turns = operator(*inputs, problem.mask(), scale=SCALE)
    torch.testing.assert_close(turns, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"summary_tokens": 3}, "summary_tokens has no effect with pattern='strided'"),
        ({"pattern": "fixed", "stride": 4}, "summary_tokens 8 must be at most the stride, 4"),
        ({"pattern": "dilated"}, "pattern"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Strided.parse(settings)
