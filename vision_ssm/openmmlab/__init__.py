"""MMSegmentation and MMDetection on current PyTorch: importing this package lets both run with `mmcv-lite`."""

from .mmcv_ops import install

__all__ = ["install"]

install()
