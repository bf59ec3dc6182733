"""What `gptq` and `awq` share: the layers of a block are quantized together, on the inputs that the quantized blocks
before it give.

N output features, K input features, M rows of inputs.
"""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.quantization.calibration import Batch, CalibrationData, by_stage, trace, watch
from effitrans.quantization.replacement import Replacement, install
from effitrans.quantization.scheme import DataUse
from effitrans.quantization.schemes.low_bit.base import LowBit, Packer
from effitrans.quantization.selection import Target, names_of

logger = logging.getLogger(__name__)


class CalibratedLowBit(LowBit):
    """Base of the weight-only schemes that calibrate: block by block, each layer by its Hessian.

    Layers that calibration never runs are rounded to the nearest, and named in the history.
    """

    uses_data_for: ClassVar[DataUse] = "calibration"

    def replace_linears(
        self, model: PreTrainedModel, targets: list[Target], data: CalibrationData
    ) -> tuple[list[Replacement], dict[str, Any]]:
        batches = data.batches(model, self)
        names = names_of(targets)
        found = trace(model, names, batches)
        target_of = {target.module: target for target in targets}
        packer, replacements = Packer(self), []
        for stage in by_stage(found.order, names):
            hessians = hessians_of(model, stage, batches, found.calls)
            for layer in stage:
                packed = packer.pack(layer, hessians.pop(layer))
                replacements.append(Replacement.of(target_of[layer], packed))
                replacements[-1].install(model)
            logger.info("%s: %d of %d layers", self.name, len(replacements), len(targets))
        unseen = [target for target in targets if target.module not in found.calls]
        rounded = [Replacement.of(target, packer.pack(target.module, None)) for target in unseen]
        install(model, rounded)
        if not unseen:
            return replacements, {}
        paths = [target.paths[0] for target in unseen]
        logger.info("rounded to the nearest, as calibration never runs them: %s", ", ".join(paths))
        return [*replacements, *rounded], {"not_seen_in_calibration": paths}


def hessians_of(
    model: PreTrainedModel, layers: list[nn.Module], batches: list[Batch], calls: Mapping[nn.Module, int]
) -> dict[nn.Module, Tensor]:
    """`X' X / M` of the inputs X [M, K] of each layer: float32 [K, K]."""
    sums: dict[nn.Module, Tensor] = {}
    rows: dict[nn.Module, int] = dict.fromkeys(layers, 0)

    def add(layer: nn.Module, x_MK: Tensor) -> None:
        x_MK = x_MK.float()
        product = x_MK.t() @ x_MK
        sums[layer] = product if layer not in sums else sums[layer].add_(product)
        rows[layer] += len(x_MK)

    watch(model, layers, batches, add, calls)
    return {layer: total / rows[layer] for layer, total in sums.items()}


def output_error(difference_NK: Tensor, hessian_KK: Tensor) -> Tensor:
    """Squared error of each row's output over the inputs that made the Hessian: float64 [N]."""
    difference_NK = difference_NK.double()
    return ((difference_NK @ hessian_KK.double()) * difference_NK).sum(1)


def scaled_by(weight_NK: Tensor, hessian_KK: Tensor, scale_K: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """(the weight with its features multiplied, the Hessian of inputs that are divided, what divides the inputs)."""
    if scale_K is None:
        return weight_NK, hessian_KK, None
    return weight_NK * scale_K, hessian_KK / (scale_K[:, None] * scale_K), 1 / scale_K
