"""Checks of data sets that lie on disk, before hours of training find out what is missing."""

from .acdc import check_acdc
from .ade20k import check_ade20k
from .amos import check_amos_mr
from .btcv import check_btcv
from .coco import check_coco
from .isic import check_isic
from .layout import LayoutError, Report, Wrong
from .synapse import check_synapse

__all__ = [
    "LayoutError",
    "Report",
    "Wrong",
    "check_acdc",
    "check_ade20k",
    "check_amos_mr",
    "check_btcv",
    "check_coco",
    "check_isic",
    "check_synapse",
]
