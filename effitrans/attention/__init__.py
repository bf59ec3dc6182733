"""Attention operators, and putting them into models."""

from effitrans.attention.full import Full
from effitrans.attention.interface import activate
from effitrans.attention.linear import Linear
from effitrans.attention.local import Local
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site
from effitrans.attention.registry import OPERATORS, operator_config
from effitrans.attention.swap import find_sites, swap_attention

__all__ = [
    "OPERATORS",
    "AttentionMask",
    "AttentionOperator",
    "Full",
    "Linear",
    "Local",
    "OperatorConfig",
    "Site",
    "activate",
    "find_sites",
    "operator_config",
    "swap_attention",
]
