"""Attention operators, and putting them into models."""

from effitrans.attention.block_sparse import BlockSparse
from effitrans.attention.by_length import ByLength, measured_crossover
from effitrans.attention.full import Full
from effitrans.attention.hybrid import Hybrid
from effitrans.attention.interface import activate
from effitrans.attention.kernel import Kernel
from effitrans.attention.linear import Linear
from effitrans.attention.linformer import Linformer
from effitrans.attention.local import Local
from effitrans.attention.mask import AttentionMask
from effitrans.attention.nystrom import Nystrom
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site
from effitrans.attention.performer import Performer
from effitrans.attention.registry import OPERATORS, operator_config
from effitrans.attention.strided import Strided
from effitrans.attention.swap import find_sites, swap_attention

__all__ = [
    "OPERATORS",
    "AttentionMask",
    "AttentionOperator",
    "BlockSparse",
    "ByLength",
    "Full",
    "Hybrid",
    "Kernel",
    "Linear",
    "Linformer",
    "Local",
    "Nystrom",
    "OperatorConfig",
    "Performer",
    "Site",
    "Strided",
    "activate",
    "find_sites",
    "measured_crossover",
    "operator_config",
    "swap_attention",
]
