"""Checks of data sets that lie on disk, before hours of training find out what is missing."""

from .ade20k import check_ade20k
from .btcv import check_btcv
from .coco import check_coco
from .layout import LayoutError, Report, Wrong

__all__ = ["LayoutError", "Report", "Wrong", "check_ade20k", "check_btcv", "check_coco"]
