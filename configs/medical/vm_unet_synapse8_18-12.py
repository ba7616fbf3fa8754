"""VM-UNet, Synapse (BTCV's training set): 8 organs, 18 volumes to train on and 12 to test on, slices of 224x224.

The files are BTCV's; the split and the order of the organs are TransUNet's. The list is of
`tools/prepare_medical.py synapse`.

Not all is as in the reference. A step draws some volumes and then slices of each, all alike, with organs or without;
there the slices of all volumes are one list. The first axis of a slice runs from left to right (RAS). The volumes that
are validated on are the test's, so the checkpoint that is best there is chosen by the test: a fair figure is that of
the last one.
"""

_base_ = ["../_base_/slices_224.py", "../_base_/volumes_runtime.py"]
classes = (
    "background", "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach",
)  # fmt: skip
label_map = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8} | dict.fromkeys((5, 9, 10, 12, 13), 0)
_data = dict(data_root="data/btcv", data_list="synapse8_18-12.json", classes=classes, label_map=label_map)
_both = ["image", "label"]
_scale = dict(type="ScaleIntensityRanged", keys=["image"], a_min=-125, a_max=275, b_min=0.0, b_max=1.0, clip=True)
_train_transforms = [
    dict(type="LoadImaged", keys=_both),
    dict(type="EnsureChannelFirstd", keys=_both),
    dict(type="Orientationd", keys=_both, axcodes="RAS", labels=None),
    dict(type="Resized", keys=_both, spatial_size=(224, 224, -1), mode=["bilinear", "nearest-exact"]),
    _scale,
    dict(type="RandSpatialCropSamplesd", keys=_both, roi_size=(224, 224, 1), random_size=False, num_samples=5),
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
train_dataloader = dict(batch_size=6, dataset=dict(_data, transforms=_train_transforms))
val_dataloader = dict(dataset=dict(_data, transforms=_test_transforms))
test_dataloader = dict(dataset=dict(_data, transforms=_test_transforms))
model = dict(network=dict(name="vm_unet", in_chans=1, num_classes=9))
# As many slices as in about 300 epochs of the reference, which has 2211; a step has 6 volumes, 5 slices of each.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-2))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-5, T_max=21000, begin=0, end=21000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=21000, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
published = dict(
    dice=81.08,
    checkpoint=None,
    source="https://github.com/JCruan519/VM-UNet",
    note="by TransUNet's evaluation",
)
