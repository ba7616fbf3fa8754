"""Small data sets in the layouts of ADE20K, COCO, BTCV, ACDC, AMOS and ISIC."""

import json
import runpy
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ADE_COUNTS = {"training": ("train", 3), "validation": ("val", 2)}


def save_image(path: Path, width: int = 12, height: int = 8) -> None:
    """A JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")


def save_mask(path: Path, value: int = 150, width: int = 12, height: int = 8) -> None:
    """A mask of 0 and one other class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width), np.uint8)
    pixels[2:, 3:] = value
    Image.fromarray(pixels).save(path)


def ade20k(root: Path) -> Path:
    """Three training and two validation images with their masks."""
    for split, (short, count) in ADE_COUNTS.items():
        for i in range(count):
            name = f"ADE_{short}_{i + 1:08d}"
            save_image(root / "images" / split / f"{name}.jpg")
            save_mask(root / "annotations" / split / f"{name}.png")
    return root


def coco(root: Path) -> Path:
    """Three training and two validation images, with two annotations each, of two categories."""
    for split, count in (("train", 3), ("val", 2)):
        images, annotations = [], []
        for i in range(1, count + 1):
            images.append(dict(id=i, file_name=f"{i:012d}.jpg", width=12, height=8))
            annotations += [dict(id=10 * i + c, image_id=i, category_id=c, bbox=[0, 0, 4, 4]) for c in (1, 2)]
            save_image(root / f"{split}2017" / f"{i:012d}.jpg")
        categories = [dict(id=i, name=name) for i, name in ((1, "person"), (2, "bicycle"))]
        write_records(root, split, dict(images=images, annotations=annotations, categories=categories))
    return root


def records(root: Path, split: str) -> dict:
    """The content of a split's annotation file."""
    return json.loads((root / "annotations" / f"instances_{split}2017.json").read_text(encoding="utf-8"))


def write_records(root: Path, split: str, content: object) -> None:
    """Write a split's annotation file."""
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")


def save_volume(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    """A gzipped NIfTI volume; by default with voxels of 0.8 x 0.8 x 3 mm, turned a little."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    if affine is None:
        affine = np.array([[-0.8, 0.03, 0, 120], [0.03, 0.8, 0, -90], [0, 0, 3, 700], [0, 0, 0, 1]])
    file = nibabel.Nifti1Image(voxels, affine)
    file.set_sform(affine, code=1)
    file.set_qform(None, code=0)
    nibabel.save(file, path)


def unit_sform(path: Path) -> None:
    """Give a file a qform of 1.5 x 1.5 x 10 mm and an sform of 1 mm."""
    import nibabel

    affine = np.diag([-1.5, -1.5, 10, 1])
    file = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), affine)
    file.set_qform(affine, code=1)
    file.set_sform(np.diag([-1, -1, 1, 1]), code=2)
    nibabel.save(file, path)


def volume(seed: int) -> np.ndarray:
    """A CT of noise."""
    return np.random.default_rng(seed).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)


def label(classes: int = 13) -> np.ndarray:
    """A label with every class."""
    return (np.arange(6 * 5 * 4) % (classes + 1)).reshape(6, 5, 4).astype(np.uint8)


def btcv(root: Path, layout: tuple[str, str, str] = ("imagesTr", "labelsTr", "imagesTs")) -> Path:
    """Three cases for training, two for validation and one without a label."""
    for number in (1, 2, 21, 35, 40):
        save_volume(root / layout[0] / f"img{number:04d}.nii.gz", volume(number))
        save_volume(root / layout[1] / f"label{number:04d}.nii.gz", label())
    save_volume(root / layout[2] / "img0061.nii.gz", volume(61))
    return root


def _copies(source: Path, names: Iterable[str], root: Path) -> None:
    """The bytes of a file, which is moved away, under many names."""
    content = source.read_bytes()
    source.unlink()
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _volumes(root: Path, images: Iterable[str], labels: Iterable[str], classes: int) -> Path:
    save_volume(root / "one.nii.gz", volume(0))
    _copies(root / "one.nii.gz", images, root)
    save_volume(root / "one.nii.gz", label(classes))
    _copies(root / "one.nii.gz", labels, root)
    return root


def acdc(root: Path, patients: Iterable[int] = range(1, 101), top: str = "training") -> Path:
    """Patients with two frames; the end-systolic one is number 10 and on."""
    frames = []
    for n in patients:
        folder = root / top / f"patient{n:03d}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text(f"ED: 1\nES: {10 + n % 7}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n")
        frames += [f"{top}/{folder.name}/{folder.name}_frame{frame:02d}" for frame in (1, 10 + n % 7)]
    return _volumes(root, [f"{frame}.nii.gz" for frame in frames], [f"{frame}_gt.nii.gz" for frame in frames], 3)


def amos(root: Path) -> Path:
    """40 and 20 MR cases, and one of CT that is no volume."""
    cases = [("Tr", n) for n in range(507, 547)] + [("Va", n) for n in range(550, 570)]
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
        (root / folder / "amos_0001.nii.gz").write_bytes(b"CT")
    images, labels = ([f"{kind}{part}/amos_{n:04d}.nii.gz" for part, n in cases] for kind in ("images", "labels"))
    return _volumes(root, images, labels, 15)


def btcv_labelled(root: Path) -> Path:
    """BTCV's 30 labelled cases."""
    numbers = [*range(1, 11), *range(21, 41)]
    images = [f"imagesTr/img{n:04d}.nii.gz" for n in numbers]
    return _volumes(root, images, [f"labelsTr/label{n:04d}.nii.gz" for n in numbers], 13)


def isic(root: Path, folders: Mapping[tuple[str, str], int], value: int = 255, ending: str = "_segmentation") -> Path:
    """So many pictures and masks in each pair of folders."""
    for number, ((images, masks), count) in enumerate(folders.items()):
        names = [f"ISIC_{1000000 * number + i:07d}" for i in range(count)]
        save_image(root / "one.jpg")
        _copies(root / "one.jpg", [f"{images}/{name}.jpg" for name in names], root)
        save_mask(root / "one.png", value)
        _copies(root / "one.png", [f"{masks}/{name}{ending}.png" for name in names], root)
    return root


def run_script(monkeypatch, script: Path, *arguments: str) -> int:
    """The status of a script of the tools, run in this process."""
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    return end.value.code
