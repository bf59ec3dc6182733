"""What the shared suite runs on: configurations of every registered operator, and random attention problems."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from effitrans.attention import (
    AttentionMask,
    AttentionOperator,
    BlockSparse,
    ByLength,
    Full,
    Hybrid,
    Kernel,
    Linear,
    Linformer,
    Local,
    Nystrom,
    OperatorConfig,
    Performer,
    Site,
    Strided,
)

LAYOUT = tuple(
    tuple(range(256)) if row in (0, 5) else tuple(sorted({0, row, row // 2, (7 * row + 3) % 256})) for row in range(256)
)
"""Each of 256 blocks sees a few; two see all."""

CASES: dict[str, list[OperatorConfig]] = {
    "full": [Full()],
    "local": [
        Local(window=3),
        Local(window=5),
        Local(window=40),
        Local(window=7, two_sided=False),
        Local(window=4, dilation=3),
        Local(window=6, num_global_tokens=2),
        Local(window=3, dilation=2, num_global_tokens=3),
    ],
    "block_sparse": [
        BlockSparse(block_size=1, window_blocks=2, num_global_blocks=1, num_random_blocks=1),
        BlockSparse(block_size=4, seed=1),
        BlockSparse(block_size=8, layout=LAYOUT),
        BlockSparse(block_size=8, window_blocks=1, num_global_blocks=0, num_random_blocks=1),
    ],
    "linear": [
        Linear(chunk_size=4),
        Linear(feature_map="relu", chunk_size=7),
        Linear(feature_map="taylor", chunk_size=32),
        Linear(feature_map="taylor", feature_dim=3),
        Linear(feature_map="hedgehog", chunk_size=16),
        Linear(feature_map="hedgehog", feature_dim=5),
        Linear(decay_gate=True, chunk_size=1),
        Linear(feature_map="hedgehog", decay_gate=True, chunk_size=8),
    ],
    "hybrid": [
        Hybrid(window=3),
        Hybrid(window=1, feature_dim=2),
        Hybrid(window=5, variant="scatterbrain", num_features=12, seed=1),
        Hybrid(window=34, variant="scatterbrain", num_features=8),
    ],
    "kernel": [Kernel(), Kernel(num_landmarks=12, regularization=0.01), Kernel(num_landmarks=5)],
    "linformer": [Linformer(rank=4), Linformer(rank=7, share_heads=False, share_key_value=True)],
    "nystrom": [Nystrom(num_landmarks=4), Nystrom(num_landmarks=9, convolution=5)],
    "performer": [
        Performer(num_features=16, chunk_size=4),
        Performer(num_features=11, seed=3, chunk_size=32),
    ],
    "strided": [
        Strided(stride=2),
        Strided(stride=5),
        Strided(pattern="fixed", stride=8, summary_tokens=3),
        Strided(stride=8),
    ],
    "by_length": [
        ByLength(crossover=4, long=Local(window=3)),
        ByLength(crossover=1000),
        ByLength(crossover=64, short=Local(window=9), long=Linear(chunk_size=16)),
    ],
}
"""Operator -> the settings under which the suite runs it. A new operator adds its line here.

The first setting of each is the one that is put into models. They read 5 to 22 tokens, so it must be small enough to
differ from full attention there.
"""

CONFIGS = [config for configs in CASES.values() for config in configs]
IN_MODELS = [configs[0] for configs in CASES.values()]


def case_id(config: OperatorConfig) -> str:
    """`local-window5-dilation3`: the operator and the settings that differ from the defaults."""

    def text(value: object) -> object:
        return (
            case_id(value) if isinstance(value, OperatorConfig) else len(value) if isinstance(value, tuple) else value
        )

    changed = [f"{key}{text(value)}" for key, value in config if value != type(config).model_fields[key].default]
    return "-".join([config.name, *changed])


@dataclass(frozen=True)
class Problem:
    """The shapes of one attention call."""

    batch: int = 2
    heads: int = 4
    groups: int = 2
    length: int = 97
    keys: int | None = None
    """Keys if they come from another sequence."""
    dim: int = 6
    causal: bool = False
    padding: str = "none"
    """none, left, right, random (holes), or empty (the first row has no token)."""
    seed: int = 0

    @property
    def site(self) -> Site:
        return Site(
            num_heads=self.heads,
            num_key_value_heads=self.groups,
            head_dim=self.dim,
            causal=self.causal,
            cross=self.keys is not None,
        )

    def __str__(self) -> str:
        direction = "causal" if self.causal else "cross" if self.keys else "bidirectional"
        heads = f"H{self.heads}" + (f"G{self.groups}" if self.groups < self.heads else "")
        return f"{direction}-B{self.batch}{heads}L{self.length}" + (
            f"-{self.padding}" if self.padding != "none" else ""
        )

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Random query, key and value that require gradients."""
        generator = torch.Generator().manual_seed(self.seed)
        keys = self.keys or self.length
        shapes = ((self.heads, self.length), (self.groups, keys), (self.groups, keys))
        tensors = (
            torch.randn(self.batch, *shape, self.dim, generator=generator, dtype=torch.float64) for shape in shapes
        )
        query, key, value = (tensor.to(dtype).requires_grad_() for tensor in tensors)
        return query, key, value

    def mask(self) -> AttentionMask:
        keys = self.keys or self.length
        return AttentionMask(self.batch, self.length, keys, causal=self.causal, padding_BT=self.padding_mask(keys))

    def padding_mask(self, keys: int) -> Tensor | None:
        if self.padding == "none":
            return None
        generator = torch.Generator().manual_seed(self.seed + 1)
        mask = torch.ones(self.batch, keys, dtype=torch.bool)
        if self.padding == "random":
            return torch.rand(self.batch, keys, generator=generator) > 0.3
        if self.padding == "empty":
            mask[0] = False
        for row in range(0, self.batch, 2):
            if self.padding == "left":
                mask[row, : keys // 3 + row] = False
            if self.padding == "right":
                mask[row, keys - keys // 3 - row :] = False
        return mask


SCALE = 0.4


def build(config: OperatorConfig, problem: Problem, dtype: torch.dtype = torch.float64) -> AttentionOperator:
    """The operator with parameters moved away from their initial values, so that they matter.

    Skips the test where the operator is not defined for the problem.
    """
    if not supported(config, problem):
        pytest.skip(f"{config.name} is not defined here")
    generator = torch.Generator().manual_seed(problem.seed + 2)
    operator = config.build(problem.site).to(dtype)
    with torch.no_grad():
        for parameter in operator.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise.to(dtype), alpha=0.3)
    return operator


def is_causal(config: OperatorConfig) -> bool:
    """The direction in which the suite runs an operator where one is enough: causal, if that is defined."""
    return supported(config, Problem(causal=True))


def supported(config: OperatorConfig, problem: Problem) -> bool:
    """Whether the operator is defined for this problem; if not, building it raises."""
    gated = getattr(config, "decay_gate", False)
    if gated and not problem.causal:
        return False
    honours = config.build(replace(problem, causal=gated, keys=None).site).honours
    return not ({"causal"} if problem.causal else set()) - honours and (problem.keys is None or "cross" in honours)
