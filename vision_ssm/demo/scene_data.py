"""The scenes of handwriting as data sets of MMSegmentation and MMDetection; written where they are missing."""

from typing import ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS as DETECTION_DATASETS
from mmengine.dist import barrier, is_main_process
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS as SEGMENTATION_DATASETS

from .scenes import CLASSES, Scenes, write

__all__ = ["PALETTE", "DigitInstances", "DigitScenes"]

# Black for the background, then matplotlib's ten colours.
PALETTE = [
    [0, 0, 0], [31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189],
    [140, 86, 75], [227, 119, 194], [127, 127, 127], [188, 189, 34], [23, 190, 207],
]  # fmt: skip
_FOLDERS = {"train": "training", "val": "validation"}


def _prepare(data_root: str, scenes: dict | None) -> None:
    """Write the scenes, in one process for all."""
    if is_main_process():
        write(data_root, Scenes(**(scenes or {})))
    barrier()


@SEGMENTATION_DATASETS.register_module()
class DigitScenes(BaseSegDataset):
    """Scenes with a class for every pixel: the background and ten digits.

    Args:
        data_root: folder that the scenes are in, or are written to.
        split: "train" or "val".
        scenes: arguments of `Scenes`.
        **kwargs: of `BaseSegDataset`.
    """

    METAINFO: ClassVar[dict] = dict(classes=CLASSES, palette=PALETTE)

    def __init__(self, data_root: str, split: str = "train", scenes: dict | None = None, **kwargs):
        _prepare(data_root, scenes)
        folder = _FOLDERS[split]
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path=f"images/{folder}", seg_map_path=f"annotations/{folder}"),
            **kwargs,
        )


@DETECTION_DATASETS.register_module()
class DigitInstances(CocoDataset):
    """Scenes with a box and a mask for every digit; arguments as of `DigitScenes`."""

    METAINFO: ClassVar[dict] = dict(classes=CLASSES[1:], palette=[tuple(colour) for colour in PALETTE[1:]])

    def __init__(self, data_root: str, split: str = "train", scenes: dict | None = None, **kwargs):
        _prepare(data_root, scenes)
        super().__init__(
            data_root=data_root,
            ann_file=f"coco/instances_{split}.json",
            data_prefix=dict(img="images/"),
            test_mode=split != "train",
            **kwargs,
        )
