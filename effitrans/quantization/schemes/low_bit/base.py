"""What `rtn`, `gptq` and `awq` share: linear layers with packed weights of few bits.

N output features, K input features, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.config import Size
from effitrans.errors import UsageError
from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.modules.grid import Grid, full_range_grid
from effitrans.quantization.modules.linear import weight_of
from effitrans.quantization.modules.packed import PackedLinear
from effitrans.quantization.replacement import Replacement, install
from effitrans.quantization.scheme import LinearScheme
from effitrans.quantization.selection import Selection, Target, names_of

Bits = Literal[2, 3, 4, 8]
"""Field of a config: bits per weight."""
GroupSize = Annotated[Size, Field(ge=8)]
"""Field of a config: neighbouring input features that share a scale and a zero point."""


@dataclass(frozen=True)
class Rounded:
    """A weight rounded to few bits."""

    q_NK: Tensor
    """uint8 [N, K], on the grid."""
    grid: Grid
    factor_K: Tensor | None = None
    """Multiplied into the input: float32 [K]. Its inverse was multiplied into the weight before it was rounded."""


class LowBit(LinearScheme):
    """Base of the weight-only schemes: weights of few bits in groups, floating-point activations."""

    bits: Bits = 4
    """Bits per weight. Weights are stored packed: 3 bits take 3 bits."""
    group_size: GroupSize | None = 64
    """Neighbouring input features that share a scale (bfloat16) and a zero point (`bits` bits); must divide the
    width of every layer. None: one group per row. On CPUs 4 bits run through PyTorch's packed kernel for groups of
    32, 64, 128 and 256."""

    def check(self, selection: Selection) -> None:
        super().check(selection)
        check_groups(names_of(selection.untied), self.group_size)

    def replace_linears(
        self, model: PreTrainedModel, targets: list[Target], data: CalibrationData
    ) -> tuple[list[Replacement], dict[str, Any]]:
        packer = Packer(self)
        replacements = [Replacement.of(target, packer.pack(target.module, None)) for target in targets]
        install(model, replacements)
        return replacements, {}

    def solve(self, weight_NK: Tensor, hessian_KK: Tensor, group_size: int) -> Rounded:
        """Round a weight for the inputs that the layer sees.

        Args:
            weight_NK: float32.
            hessian_KK: `X' X / M` of these inputs X [M, K].
            group_size: input features per group.
        """
        raise NotImplementedError


class Packer:
    """Makes the packed layer of a linear one; layers that share a weight share the packed one."""

    def __init__(self, config: LowBit) -> None:
        self.config = config
        self.done: dict[int, Rounded] = {}

    def pack(self, linear: nn.Module, hessian_KK: Tensor | None) -> PackedLinear:
        """The packed layer; without a Hessian, rounded to the nearest."""
        weight = linear.weight
        if id(weight) not in self.done:
            weight_NK = weight_of(linear).detach().float()
            size = self.config.group_size or weight_NK.shape[1]
            if hessian_KK is None:
                grid = full_range_grid(weight_NK, self.config.bits, size)
                self.done[id(weight)] = Rounded(grid.round(weight_NK), grid)
            else:
                self.done[id(weight)] = self.config.solve(weight_NK, hessian_KK, size)
        rounded = self.done[id(weight)]
        # Buffers of each layer, which files cannot share.
        grid = replace(rounded.grid, scale_NG=rounded.grid.scale_NG.clone())
        factor_K = None if rounded.factor_K is None else rounded.factor_K.clone()
        return PackedLinear.from_integers(rounded.q_NK, grid, linear.bias, factor_K)  # type: ignore[arg-type]


def check_groups(names: Mapping[nn.Module, str], group_size: int | None) -> None:
    """Refuse groups that do not divide the width of every layer."""
    if group_size is None:
        return
    widths = {name: weight_of(layer).shape[1] for layer, name in names.items()}
    for name, width in widths.items():
        if width % group_size:
            fitting = [size for size in (256, 128, 64, 32, 16, 8, 4) if all(w % size == 0 for w in widths.values())]
            remedy = f"choose {' or '.join(map(str, fitting[:3]))}, or none" if fitting else "choose none"
            raise UsageError(
                f"group_size {group_size} does not divide the {width} input features of {name}: {remedy} "
                "(one group per row), or skip that layer"
            )
