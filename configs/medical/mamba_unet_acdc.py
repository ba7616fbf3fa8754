"""Mamba-UNet, ACDC: right ventricle, myocardium and left ventricle in slices of 224x224.

`acdc.json`, of `tools/prepare_medical.py acdc`, lists the end-diastolic and end-systolic frames of 70 patients to train
on, 10 to validate on ("validation") and 20 to test on ("test"): those of the reference's lists.

A step draws some volumes and then slices of each, all alike, with the heart or without; in the reference the slices of
all volumes are one list. The first axis of a slice runs from left to right (RAS).
"""

_base_ = ["../_base_/slices_224.py", "../_base_/volumes_runtime.py"]
classes = ("background", "right ventricle", "myocardium", "left ventricle")
_both = ["image", "label"]
_scale = dict(type="ScaleIntensityd", keys=["image"])
_train_transforms = [
    dict(type="LoadImaged", keys=_both),
    dict(type="EnsureChannelFirstd", keys=_both),
    dict(type="Orientationd", keys=_both, axcodes="RAS", labels=None),
    dict(type="Resized", keys=_both, spatial_size=(224, 224, -1), mode=["bilinear", "nearest-exact"]),
    _scale,
    dict(type="RandSpatialCropSamplesd", keys=_both, roi_size=(224, 224, 1), random_size=False, num_samples=6),
    dict(type="SqueezeDimd", keys=_both, dim=-1, update_meta=False),
    dict(type="RandFlipd", keys=_both, spatial_axis=0, prob=0.25),
    dict(type="RandFlipd", keys=_both, spatial_axis=1, prob=0.25),
    dict(type="RandRotate90d", keys=_both, prob=0.5, max_k=3),
    dict(type="RandRotated", keys=_both, range_x=0.35, prob=0.25, mode=["bilinear", "nearest"]),
]
_test_transforms = [
    dict(type="LoadImaged", keys=["image"]),
    dict(type="EnsureChannelFirstd", keys=["image"]),
    dict(type="Orientationd", keys=["image"], axcodes="RAS", labels=None),
    dict(type="Resized", keys=["image"], spatial_size=(224, 224, -1), mode="bilinear"),
    _scale,
]
_data = dict(data_root="data/acdc", data_list="acdc.json", classes=classes)
train_dataloader = dict(dataset=dict(_data, transforms=_train_transforms))
val_dataloader = dict(dataset=dict(_data, transforms=_test_transforms))
test_dataloader = dict(dataset=dict(_data, transforms=_test_transforms, split="test"))
model = dict(
    network=dict(name="mamba_unet", in_chans=1, num_classes=4), loss=dict(lambda_dice=0.5, lambda_ce=0.5, batch=True)
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=10000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=10000, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
published = dict(
    dice=92.81,
    checkpoint=None,
    source="https://github.com/ziyangwang007/Mamba-UNet",
    note="on files of its own preprocessing",
)
