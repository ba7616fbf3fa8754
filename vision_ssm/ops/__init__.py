"""Functional operators: selective scan and causal convolution, on every backend."""

from . import flops
from .backends import available_backends, current_backend, use_backend
from .causal_conv1d import causal_conv1d
from .selective_scan import scan_tokens, selective_scan, selective_scan_nd

__all__ = [
    "available_backends",
    "causal_conv1d",
    "current_backend",
    "flops",
    "scan_tokens",
    "selective_scan",
    "selective_scan_nd",
    "use_backend",
]
