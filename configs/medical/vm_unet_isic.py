"""VM-UNet, ISIC 2018: skin lesions in pictures of 256x256.

`isic18.json`, of `tools/prepare_medical.py isic18`, lists pictures ("training", "validation") with their masks of 0 and
255, or of 0 and 1. The reference has one sigmoid output with Dice and cross-entropy; here it is a softmax over two
classes.
"""

_base_ = ["../_base_/volumes_data.py", "../_base_/volumes_runtime.py"]
classes = ("skin", "lesion")
_both = ["image", "label"]
_scale = dict(type="ScaleIntensityd", keys=["image"], minv=0.0, maxv=255.0)
_train_transforms = [
    dict(type="LoadImaged", keys=_both),
    dict(type="EnsureChannelFirstd", keys=_both),
    dict(type="Resized", keys=_both, spatial_size=(256, 256), mode=["bilinear", "nearest-exact"]),
    _scale,
    dict(type="RandFlipd", keys=_both, spatial_axis=0, prob=0.5),
    dict(type="RandFlipd", keys=_both, spatial_axis=1, prob=0.5),
    dict(type="RandRotated", keys=_both, range_x=3.14159, prob=0.5, mode=["bilinear", "nearest"]),
]
_test_transforms = [
    dict(type="LoadImaged", keys=["image"]),
    dict(type="EnsureChannelFirstd", keys=["image"]),
    dict(type="Resized", keys=["image"], spatial_size=(256, 256), mode="bilinear"),
    _scale,
]
_data = dict(data_root="data/isic18", data_list="isic18.json", classes=classes, label_map={1: 1, 255: 1})
train_dataloader = dict(batch_size=32, num_workers=8, dataset=dict(_data, transforms=_train_transforms))
val_dataloader = dict(batch_size=8, num_workers=4, dataset=dict(_data, transforms=_test_transforms))
test_dataloader = val_dataloader
test_evaluator = dict(hd95=False)
model = dict(
    network=dict(name="vm_unet", in_chans=3, num_classes=2),
    inference=dict(roi_size=(256, 256), overlap=0.0),
)
# 300 epochs of 1886 pictures. As in the reference the rate falls and rises six times, every 50 epochs, and is high at
# the end: the best checkpoint counts, not the last one.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-2))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-5, T_max=2950, begin=0, end=17700, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=17700, val_interval=590)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
published = dict(
    dice=89.71,
    checkpoint=None,
    source="https://github.com/JCruan519/VM-UNet",
    note="of all pixels at once; here the mean over pictures",
)
