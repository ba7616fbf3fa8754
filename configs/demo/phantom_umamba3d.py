"""Eleven abdominal organs in drawn CT volumes: a small U-Mamba in 3D, trained in minutes on two CPU cores.

The volumes are phantoms, not patients (`vision_ssm.demo.phantoms`), in the layout of BTCV: what is reached on them says
that the software works, and nothing about real scans. They are written to `data_root` where they are missing. The
adrenal glands, BTCV's last two organs, are left out: in these coarse volumes they are a voxel thick.
"""

_base_ = ["../_base_/btcv.py", "../_base_/volumes_runtime.py"]
custom_imports = dict(imports=["vision_ssm.volumes", "vision_ssm.demo.phantom_data", "vision_ssm.demo.volume_sheet"])
data_root = "data/phantoms"
phantoms = dict(train=24, val=6, size=80)
classes = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic veins", "pancreas",
)  # fmt: skip
label_map = {i: i if i < len(classes) else 0 for i in range(14)}
_crop = (48, 48, 32)
_both = ["image", "label"]
_spacing = (5.0, 5.0, 5.0)
_window = dict(type="ScaleIntensityRanged", keys=["image"], a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True)
_train_transforms = [
    dict(type="LoadImaged", keys=_both),
    dict(type="EnsureChannelFirstd", keys=_both),
    dict(type="Orientationd", keys=_both, axcodes="RAS", labels=None),
    dict(type="Spacingd", keys=_both, pixdim=_spacing, mode=["bilinear", "nearest"]),
    _window,
    dict(type="CropForegroundd", keys=_both, source_key="image", allow_smaller=True),
    dict(type="SpatialPadd", keys=_both, spatial_size=_crop),
    dict(
        type="RandCropByLabelClassesd",
        keys=_both,
        label_key="label",
        spatial_size=_crop,
        num_classes=len(classes),
        num_samples=2,
        warn=False,
    ),
    dict(type="RandShiftIntensityd", keys=["image"], offsets=0.1, prob=0.5),
]
_test_transforms = [
    dict(type="LoadImaged", keys=["image"]),
    dict(type="EnsureChannelFirstd", keys=["image"]),
    dict(type="Orientationd", keys=["image"], axcodes="RAS", labels=None),
    dict(type="Spacingd", keys=["image"], pixdim=_spacing, mode="bilinear"),
    _window,
    dict(type="CropForegroundd", keys=["image"], source_key="image", allow_smaller=True),
]
_data = dict(type="PhantomVolumes", data_root=data_root, phantoms=phantoms, classes=classes, label_map=label_map)
_no_workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(_data, transforms=_train_transforms), **_no_workers)
val_dataloader = dict(dataset=dict(_data, transforms=_test_transforms), **_no_workers)
test_dataloader = val_dataloader
val_evaluator = dict(hd95=True)
test_evaluator = val_evaluator
model = dict(
    network=dict(
        name="umamba_enc_3d",
        in_chans=1,
        num_classes=len(classes),
        input_size=_crop,
        features=(8, 16, 32, 64),
        kernels=(3, 3, 3, 3),
        strides=(1, 2, 2, 2),
        depths=(1, 1, 1, 1),
        decoder_depths=(1, 1, 1),
        deep_supervision=True,
    ),
    inference=dict(roi_size=_crop, sw_batch_size=2),
    channels_last=True,
)
_iters = 1000
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3, weight_decay=1e-5), clip_grad=dict(max_norm=12)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", eta_min=0.0, power=0.9, begin=50, end=_iters, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=_iters, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=150), logger=dict(interval=20))
custom_hooks = [dict(type="VolumeSheet")]
