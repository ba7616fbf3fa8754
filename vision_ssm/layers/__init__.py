"""Token mixers and the few parts that timm.layers lacks."""

from timm.models import register_notrace_function

from ..ops import causal_conv1d, scan_tokens
from ..scan import scan_tables
from .gate import PathGate
from .local_mamba import LocalMamba
from .mamba import DepthwiseConv1d, Mamba, auto_rank
from .rope import rotary_tables, rotate
from .ss2d import SS2D, CascadeSS2D, one_way, two_way
from .ssm import SelectiveSSM

# FX tracing sees the functional operators as leaves: their checks read shapes.
for _function in (scan_tokens, causal_conv1d, scan_tables, rotary_tables):
    register_notrace_function(_function)

__all__ = [
    "SS2D",
    "CascadeSS2D",
    "DepthwiseConv1d",
    "LocalMamba",
    "Mamba",
    "PathGate",
    "SelectiveSSM",
    "auto_rank",
    "one_way",
    "rotary_tables",
    "rotate",
    "two_way",
]
