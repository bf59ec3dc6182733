"""Hard-concrete gates on the units of a model.

A gate is a random variable in [0, 1] with mass at both ends (Louizos et al. 2018, arXiv:1712.01312, equations 10-12):

    s = sigmoid((log u - log(1 - u) + log_alpha) / beta),  u ~ U(0, 1)
    z = clamp(s (zeta - gamma) + gamma, 0, 1)
    P(z > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))

It multiplies what its unit adds to the residual stream, and is drawn once per forward pass. In evaluation mode it has
the fixed value clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1) (equation 13).

Shapes: U units of a site.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.pruning.sites import PruningSite

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
OPEN = 3.0
"""Where log_alpha starts: gates are open 99 times in 100."""


class Gates(nn.Module):
    """The gates of several sites.

    Args:
        sites: what is gated.
        seed: of the noise.
    """

    def __init__(self, sites: Sequence[PruningSite], seed: int = 0) -> None:
        super().__init__()
        self.log_alpha = nn.ParameterList([nn.Parameter(torch.full((site.units,), OPEN)) for site in sites])
        self.generator = torch.Generator().manual_seed(seed)
        self.values: list[Tensor] = []

    def open_probability(self) -> list[Tensor]:
        """P(z > 0) of every gate: one tensor [U] per site."""
        return [torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA)) for log_alpha in self.log_alpha]

    def draw(self) -> None:
        """Set the values of the next forward pass."""
        self.values = [self._value(log_alpha) for log_alpha in self.log_alpha]

    def _value(self, log_alpha: Tensor) -> Tensor:
        if not self.training:
            return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        noise = torch.rand(log_alpha.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6).to(log_alpha.device)
        concrete = torch.sigmoid((torch.logit(noise) + log_alpha) / BETA)
        return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


@contextmanager
def attached(model: PreTrainedModel, gates: Gates, sites: Sequence[PruningSite]) -> Iterator[None]:
    """Gate the sites of a model, with values that are drawn when its forward pass begins."""
    with ExitStack() as undo:
        undo.callback(model.register_forward_pre_hook(lambda module, arguments: gates.draw()).remove)
        for index, site in enumerate(sites):
            undo.enter_context(site.gated(lambda inputs, index=index: gates.values[index]))
        yield
