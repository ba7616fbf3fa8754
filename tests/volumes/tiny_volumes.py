"""Tiny volumes with oblique affines, a small network, and a config that trains on them."""

import json
from pathlib import Path

import nibabel
import numpy as np
import torch
from engine import tiny
from mmengine import Config
from torch import nn

CLASSES = ("background", "ball", "box")
SHAPE = (26, 22, 20)
SPACING = (1.0, 1.5, 2.0)


def oblique(spacing=SPACING, angle: float = 0.2, flipped: bool = True) -> np.ndarray:
    """An affine with turned axes: the file's axes run to the left, behind and above, roughly."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(np.array([-1, 1, 1]) if flipped else np.ones(3)) @ np.diag(spacing)
    affine[:3, 3] = (31.0, -17.5, 203.0)
    return affine


def arrays(seed: int, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An image whose intensity tells the class (0, 1 and 2, with noise below a quarter), and the classes."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    centre = np.array(shape)[:, None, None, None] * rng.uniform(0.3, 0.4, (3, 1, 1, 1))
    labels = np.zeros(shape, dtype=np.uint8)
    labels[((grid - centre) ** 2).sum(0) < 25] = 1
    corner = [int(side * 0.6) for side in shape]
    labels[corner[0] : corner[0] + 6, corner[1] : corner[1] + 5, corner[2] : corner[2] + 4] = 2
    image = labels + rng.uniform(-0.25, 0.25, shape)
    return image.astype(np.float32), labels


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Write NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def write(root: Path, train: int = 3, val: int = 2, shape=SHAPE, affine: np.ndarray | None = None) -> Path:
    """A data set in BTCV's layout; returns its folder."""
    affine = oblique() if affine is None else affine
    lists = dict(training=[], validation=[])
    for i in range(train + val):
        image, labels = arrays(i, shape)
        save(root / "imagesTr" / f"img{i:04d}.nii.gz", image, affine)
        save(root / "labelsTr" / f"label{i:04d}.nii.gz", labels, affine)
        entry = dict(image=f"imagesTr/img{i:04d}.nii.gz", label=f"labelsTr/label{i:04d}.nii.gz")
        lists["training" if i < train else "validation"].append(entry)
    (root / "dataset_0.json").write_text(json.dumps(lists))
    return root


class Threshold(nn.Module):
    """The perfect network for `arrays`: classes at intensities 0, 1 and 2, voxel by voxel."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.classes = classes
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, x):
        levels = torch.arange(float(self.classes), device=x.device).view(1, -1, *[1] * (x.ndim - 2))
        return -self.scale * (x - levels) ** 2


class ColourThreshold(Threshold):
    """The same for colour pictures of 0 and 1."""

    def forward(self, x):
        return super().forward(x.mean(1, keepdim=True))


class Small(nn.Module):
    """Two convolutions with BatchNorm and dropout; logits at two resolutions while it trains."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Dropout(0.2))
        self.head, self.coarse = nn.Conv3d(4, classes, 1), nn.Conv3d(4, classes, 2, stride=2)

    def forward(self, x):
        x = self.body(x)
        return [self.head(x), self.coarse(x)] if self.training else self.head(x)


class Plain(nn.Module):
    """A convolution for images or volumes."""

    def __init__(self, dims: int, in_chans: int, num_classes: int):
        super().__init__()
        self.head = (nn.Conv2d, nn.Conv3d)[dims - 2](in_chans, num_classes, 3, padding=1)

    def forward(self, x):
        return self.head(x)


def loading(*keys: str) -> list[dict]:
    """Steps that training and tests share."""
    keys = list(keys)
    mode = ["bilinear" if key == "image" else "nearest" for key in keys]
    return [
        dict(type="LoadImaged", keys=keys),
        dict(type="EnsureChannelFirstd", keys=keys),
        dict(type="Orientationd", keys=keys, axcodes="RAS", labels=None),
        dict(type="Spacingd", keys=keys, pixdim=SPACING, mode=mode),
        dict(type="CropForegroundd", keys=keys, source_key="image", margin=1, allow_smaller=True),
    ]


CROPS = [
    dict(type="SpatialPadd", keys=["image", "label"], spatial_size=(12, 12, 12)),
    dict(
        type="RandCropByPosNegLabeld",
        keys=["image", "label"],
        label_key="label",
        spatial_size=(12, 12, 12),
        pos=1,
        neg=1,
        num_samples=2,
    ),
    dict(type="RandFlipd", keys=["image", "label"], prob=0.5, spatial_axis=0),
    dict(type="RandShiftIntensityd", keys=["image"], offsets=0.1, prob=0.5),
]


def dataset(root: Path, split: str = "training", **changes) -> dict:
    """Config of a data set."""
    test = split != "training"
    return dict(
        type="VolumeDataset",
        data_root=str(root),
        data_list="dataset_0.json",
        split=split,
        classes=CLASSES,
        transforms=loading("image") if test else loading("image", "label") + CROPS,
        test_mode=test,
    ) | dict(changes)


def model(network: dict, roi_size=(12, 12, 12), **inference) -> dict:
    """Config of a segmentor."""
    return dict(
        type="VolumeSegmentor",
        network=network,
        inference=dict(roi_size=roi_size, overlap=0.5, sw_batch_size=2, **inference),
        loss=dict(batch=True),
    )


def config(root: Path, workers: int = 0, steps: int = 12, **changes) -> Config:
    """The engine's tests' config (moving average, accumulated gradients, schedules) over volumes."""
    cfg = tiny.config(workers=workers, steps=steps)
    loader = dict(num_workers=workers, persistent_workers=workers > 0)
    sampler = dict(type="DefaultSampler", shuffle=False)
    whole = dict(batch_size=1, num_workers=0, sampler=sampler, dataset=dataset(root, "validation"))
    cfg.merge_from_dict(
        dict(
            custom_imports=dict(imports=["vision_ssm.volumes"]),
            model=dict(model(dict(type="volumes.tiny_volumes.Small")), _delete_=True),
            train_dataloader=dict(
                batch_size=2,
                sampler=dict(type="InfiniteSampler", shuffle=True),
                dataset=dataset(root),
                **loader,
                _delete_=True,
            ),
            val_dataloader=dict(whole, _delete_=True),
            val_evaluator=dict(type="VolumeMetrics", classes=CLASSES, _delete_=True),
            test_dataloader=whole,
            test_evaluator=dict(type="VolumeMetrics", classes=CLASSES),
            test_cfg=dict(type="TestLoop"),
            train_cfg=dict(val_interval=4),
        )
    )
    cfg.default_hooks.checkpoint.update(interval=3, save_best="mean_dice")
    cfg.merge_from_dict(changes)
    return cfg
