"""Small data sets in the layouts of ADE20K, MMSegmentation and COCO 2017, of images large enough to train on."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 96, 64  # width and height of an image
# The published files number 80 categories from 1 to 90.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def save_photo(path: Path, seed: int) -> None:
    """A JPEG of large patches of colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(SIZE, Image.Resampling.BILINEAR).save(path)


def ade20k(root: Path) -> Path:
    """Three training and two validation images; their masks hold 0 (unlabelled) and classes up to 150."""
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(count):
            name = f"ADE_{short}_{i + 1:08d}"
            save_photo(root / "images" / split / f"{name}.jpg", i)
            ids = np.linspace(0, 150, 24).astype(np.uint8).reshape(4, 6)
            mask = Image.fromarray(ids).resize(SIZE, Image.Resampling.NEAREST)
            path = root / "annotations" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)
    return root


def slices(root: Path, classes: int) -> Path:
    """Three training and two validation images with maps of all `classes`, in MMSegmentation's own layout."""
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            save_photo(root / "img_dir" / split / f"{i:03d}.jpg", i)
            ids = np.linspace(0, classes - 1, 24).round().astype(np.uint8).reshape(4, 6)
            path = root / "ann_dir" / split / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).resize(SIZE, Image.Resampling.NEAREST).save(path)
    return root


def coco(root: Path, names: tuple[str, ...]) -> Path:
    """Two training and two validation images with two objects each, among the 80 categories."""
    categories = [dict(id=i, name=name) for i, name in zip(COCO_IDS, names, strict=True)]
    for split in ("train2017", "val2017"):
        images, annotations = [], []
        for i in (1, 2):
            file = f"{i:012d}.jpg"
            save_photo(root / split / file, i)
            images.append(dict(id=i, file_name=file, width=SIZE[0], height=SIZE[1]))
            for category, (x, y, w, h) in ((1, (4, 4, 40, 48)), (90, (50, 20, 40, 40))):
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=category,
                        bbox=[x, y, w, h],
                        area=w * h,
                        iscrowd=0,
                        segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                    )
                )
        content = dict(images=images, annotations=annotations, categories=categories)
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return root
