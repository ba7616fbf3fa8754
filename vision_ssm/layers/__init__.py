"""Token mixers and the few parts that timm.layers lacks."""

from timm.models import register_notrace_function, register_notrace_module

from ..ops import causal_conv1d
from ..scan import scan_tables
from .gate import PathGate
from .local_mamba import LocalMamba
from .mamba import DepthwiseConv1d, Mamba, auto_rank
from .paired_mamba import SiameseMamba, TwinMamba
from .path_mamba import PathMamba, TriOrientatedMamba
from .rope import rotary_tables, rotate
from .ss2d import SS2D, CascadeSS2D, one_way, two_way
from .ssm import SelectiveSSM

# Nodes of their own in FX graphs: they read shapes, which a trace does not know.
register_notrace_module(SelectiveSSM)
register_notrace_module(PathGate)
for _function in (causal_conv1d, scan_tables):
    register_notrace_function(_function)

__all__ = [
    "SS2D",
    "CascadeSS2D",
    "DepthwiseConv1d",
    "LocalMamba",
    "Mamba",
    "PathGate",
    "PathMamba",
    "SelectiveSSM",
    "SiameseMamba",
    "TriOrientatedMamba",
    "TwinMamba",
    "auto_rank",
    "one_way",
    "rotary_tables",
    "rotate",
    "two_way",
]
