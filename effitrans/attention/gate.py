"""A decay gate for linear attention: how much of the state each position keeps.

    log g_t = log sigmoid(w . k_t + b) / 16

one number a key/value head and position, as in Yang et al., "Gated Linear Attention Transformers with
Hardware-Efficient Training" (2024), sections 4.1 and 4.4 (temperature 16), with a scalar instead of a vector of gates.
Deviation: the gate reads the head's key, since an operator sees no hidden states. It starts without dependence on
data, w = 0, and with gates from 1 - 2^-5 to 1 - 2^-12 spread over the heads, similar to the fixed decays of RetNet (Sun
et al. 2023, eq. 8).

Shapes: B batch, G key/value heads, S keys, D head dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

TEMPERATURE = 16


class DecayGate(nn.Module):
    """Log gates [B, G, S], at most 0, from keys [B, G, S, D]; 0 where the key is padding, which so forgets nothing.

    Args:
        num_heads: key/value heads.
        head_dim: D.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        gates = 1 - 2.0 ** -torch.linspace(5, 12, num_heads, dtype=torch.float64)
        self.weight = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.bias = nn.Parameter(torch.logit(gates**TEMPERATURE).float())

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Keep only the gates of these heads."""
        for name, parameter in list(self.named_parameters()):
            kept = parameter.detach()[list(heads)].clone()
            setattr(self, name, nn.Parameter(kept, parameter.requires_grad))

    def forward(self, key_BGSD: Tensor, padding_BS: Tensor | None = None) -> Tensor:
        weight_GD1, bias_G1 = self.weight.to(key_BGSD.dtype).unsqueeze(-1), self.bias.to(key_BGSD.dtype).unsqueeze(-1)
        log_BGS = logsigmoid((key_BGSD @ weight_GD1).squeeze(-1) + bias_G1) / TEMPERATURE
        return log_BGS if padding_BS is None else log_BGS.masked_fill(~padding_BS[:, None], 0)
