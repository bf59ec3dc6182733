"""Feature maps phi of linear attention, where exp(q . k) is replaced by phi(q) . phi(k).

    elu       phi(x) = elu(x) + 1                          Katharopoulos et al., "Transformers are RNNs" (2020), eq. 7
    relu      phi(x) = relu(x) + 0.001                     Choromanski et al., "Rethinking attention" (2021), section 4
    taylor    phi(q) . phi(k) = 1 + q.k + (q.k)^2 / 2      Arora et al., "Based" (2024), section 4.1
    hedgehog  phi(x) = softmax([W x, -W x]), W learned     Zhang et al., "The Hedgehog & the Porcupine" (2024), eq. 6

All are positive, or have a positive product, so the normaliser never vanishes but for what float32 cannot hold. Based
projects queries and keys to a few features first, which `feature_dim` does with a learned matrix a head; Hedgehog's W
starts as the identity. The Taylor features of D inputs number 1 + D + D (D + 1) / 2: each product x_i x_j appears
once.

`RandomFeatures` are those of Performer, which have no parameters and estimate exp(q . k) without bias.

Shapes: B batch, H heads, L positions, D head dimension, F features.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

FeatureMapName = Literal["elu", "relu", "taylor", "hedgehog"]


class FeatureMap(nn.Module):
    """phi for the heads of one side (queries or keys): [B, H, L, D] -> [B, H, L, F].

    Args:
        name: which of the maps above.
        num_heads: heads; each has a projection of its own where there is one.
        head_dim: D.
        feature_dim: width of the learned projection; None: no projection (hedgehog: D).
    """

    def __init__(self, name: FeatureMapName, num_heads: int, head_dim: int, feature_dim: int | None = None) -> None:
        super().__init__()
        self.name = name
        width = head_dim if feature_dim is None and name == "hedgehog" else feature_dim
        self.weight = None if width is None else nn.Parameter(_orthonormal(width, head_dim).repeat(num_heads, 1, 1))
        self.input_dim = head_dim if width is None else width

    @property
    def num_features(self) -> int:
        """F."""
        dim = self.input_dim
        return {"elu": dim, "relu": dim, "hedgehog": 2 * dim, "taylor": 1 + dim + dim * (dim + 1) // 2}[self.name]

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Keep only the projections of these heads."""
        if self.weight is not None:
            self.weight = nn.Parameter(self.weight.detach()[list(heads)].clone(), self.weight.requires_grad)

    def forward(self, x_BHLD: Tensor, scale: float = 1.0) -> Tensor:
        """phi(scale x)."""
        if self.name == "elu":
            return _EluPlusOne.apply(x_BHLD, scale)
        x_BHLD = x_BHLD * scale if self.weight is None else x_BHLD @ (self.weight * scale).to(x_BHLD.dtype).mT
        if self.name == "relu":
            return torch.relu(x_BHLD) + 1e-3
        if self.name == "hedgehog":
            return torch.softmax(torch.cat([x_BHLD, -x_BHLD], dim=-1), dim=-1)
        return _taylor(x_BHLD)


class RandomFeatures(nn.Module):
    """Positive orthogonal random features (FAVOR+) of exp(q . k), the same for all heads.

        phi(x) = exp(W x - |x|^2 / 2) / sqrt(F)    Choromanski et al., "Rethinking attention" (2021), eq. 4-7

    The rows of W are orthogonal in groups of D, and as long as those of a Gaussian matrix, so that each has a Gaussian
    distribution of its own. The buffer `projection` [F, D] is W; it is saved with the model.

    Args:
        num_features: F.
        head_dim: D.
        seed: of the draw.
    """

    projection: Tensor

    def __init__(self, num_features: int, head_dim: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.empty(num_features, head_dim))
        if not self.projection.is_meta:
            self.redraw(seed)

    def redraw(self, seed: int) -> None:
        """Replace the projection by another draw, in place."""
        num_features, head_dim = self.projection.shape
        generator = torch.Generator().manual_seed(seed)
        options = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        groups, triangles = torch.linalg.qr(torch.randn(-(-num_features // head_dim), head_dim, head_dim, **options))
        # without the signs the directions are not uniform, and the estimate is biased
        groups = groups * triangles.diagonal(dim1=1, dim2=2).sign()[:, None]
        lengths = torch.randn(num_features, head_dim, **options).norm(dim=1, keepdim=True)
        self.projection.copy_(groups.transpose(1, 2).reshape(-1, head_dim)[:num_features] * lengths)

    def forward(self, x_BHLD: Tensor) -> tuple[Tensor, Tensor]:
        """phi(x) as features [B, H, L, F], the largest of which is 1, and the log [B, H, L] of what they are times.

        The log carries no gradient: where both are used together, it cancels.
        """
        exponents = x_BHLD @ self.projection.to(x_BHLD.dtype).T - x_BHLD.square().sum(-1, keepdim=True) / 2
        peak = exponents.detach().amax(-1, keepdim=True)
        return torch.exp(exponents - peak), peak.squeeze(-1) - math.log(self.projection.shape[0]) / 2

    def plain(self, x_BHLD: Tensor) -> Tensor:
        """phi(x) as the formula has it; it leaves the range of float32 for long x."""
        exponents = x_BHLD @ self.projection.to(x_BHLD.dtype).T - x_BHLD.square().sum(-1, keepdim=True) / 2
        return torch.exp(exponents) / math.sqrt(self.projection.shape[0])


class _EluPlusOne(torch.autograd.Function):
    """elu(scale x) + 1, whose derivative is scale min(elu(scale x) + 1, 1). In one pass; torch's derivative is slow."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return torch.ops.aten.elu(x, 1 / scale, scale, scale).add_(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        return features.clamp(max=1).mul_(ctx.scale).mul_(grad), None


def _taylor(x_BHLD: Tensor) -> Tensor:
    """[1, x, x_i^2 / sqrt(2), x_i x_j for i < j]."""
    dim = x_BHLD.shape[-1]
    rows, columns = torch.triu_indices(dim, dim, offset=1, device=x_BHLD.device)
    squares = x_BHLD.square() / math.sqrt(2)
    products = x_BHLD[..., rows] * x_BHLD[..., columns]
    return torch.cat([torch.ones_like(x_BHLD[..., :1]), x_BHLD, squares, products], dim=-1)


def _orthonormal(width: int, head_dim: int) -> Tensor:
    """[width, head_dim]: the identity, or where that is not square the first vectors of the cosine basis."""
    if width == head_dim:
        return torch.eye(head_dim)
    order, position = torch.arange(width)[:, None], torch.arange(head_dim)[None, :]
    basis = torch.cos(math.pi * order * (position + 0.5) / head_dim) * math.sqrt(2 / head_dim)
    return torch.where(order == 0, basis / math.sqrt(2), basis)
