"""Thirteen abdominal organs in drawn CT volumes: a small U-Mamba in 3D, trained in minutes on two CPU cores.

The volumes are phantoms, not patients (`vision_ssm.demo.phantoms`), in the layout of BTCV: what is reached on them says
that the software works, and nothing about real scans. They are written to `data_root` where they are missing.
"""

_base_ = ["../_base_/btcv.py", "../_base_/volumes_runtime.py"]
custom_imports = dict(imports=["vision_ssm.volumes", "vision_ssm.demo.phantom_data", "vision_ssm.demo.volume_sheet"])
data_root = "data/phantoms"
phantoms = dict(train=24, val=6, size=80)
_crop = (48, 48, 48)
_both = ["image", "label"]
_whole = [
    dict(type="EnsureChannelFirstd"),
    dict(type="Orientationd", axcodes="RAS", labels=None),
    dict(type="Spacingd", pixdim=(4.5, 4.5, 4.5)),
]


def _first(keys: list[str], modes: list[str]) -> list[dict]:
    load = [dict(type="LoadImaged", keys=keys)] + [dict(step, keys=keys) for step in _whole]
    load[-1]["mode"] = modes
    window = dict(type="ScaleIntensityRanged", keys=["image"], a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True)
    return [*load, window, dict(type="CropForegroundd", keys=keys, source_key="image", allow_smaller=True)]


_train_transforms = [
    *_first(_both, ["bilinear", "nearest"]),
    dict(type="SpatialPadd", keys=_both, spatial_size=_crop),
    dict(
        type="RandCropByLabelClassesd",
        keys=_both,
        label_key="label",
        spatial_size=_crop,
        num_classes=14,
        num_samples=2,
    ),
    dict(type="RandShiftIntensityd", keys=["image"], offsets=0.1, prob=0.5),
]
_data = dict(type="PhantomVolumes", data_root=data_root, phantoms=phantoms)
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(_data, transforms=_train_transforms, cache_rate=1.0)
)
