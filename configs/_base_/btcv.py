"""BTCV's abdomen: 13 organs, 24 volumes to train on and 6 to validate on (the usual `dataset_0.json`).

Spacing, window and augmentation are those of MONAI's BTCV tutorials.
"""

_base_ = "./volumes_data.py"
data_root = "data/btcv"
classes = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
_crop = (96, 96, 96)
_both = ["image", "label"]
_window = dict(type="ScaleIntensityRanged", keys=["image"], a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True)
_train_transforms = [
    dict(type="LoadImaged", keys=_both),
    dict(type="EnsureChannelFirstd", keys=_both),
    dict(type="Orientationd", keys=_both, axcodes="RAS", labels=None),
    dict(type="Spacingd", keys=_both, pixdim=(1.5, 1.5, 2.0), mode=["bilinear", "nearest"]),
    _window,
    dict(type="CropForegroundd", keys=_both, source_key="image", allow_smaller=True),
    dict(type="SpatialPadd", keys=_both, spatial_size=_crop),
    dict(
        type="RandCropByPosNegLabeld",
        keys=_both,
        label_key="label",
        spatial_size=_crop,
        pos=1,
        neg=1,
        num_samples=4,
        image_key="image",
        image_threshold=0,
    ),
    dict(type="RandFlipd", keys=_both, spatial_axis=0, prob=0.1),
    dict(type="RandFlipd", keys=_both, spatial_axis=1, prob=0.1),
    dict(type="RandFlipd", keys=_both, spatial_axis=2, prob=0.1),
    dict(type="RandRotate90d", keys=_both, prob=0.1, max_k=3),
    dict(type="RandShiftIntensityd", keys=["image"], offsets=0.1, prob=0.5),
]
_test_transforms = [
    dict(type="LoadImaged", keys=["image"]),
    dict(type="EnsureChannelFirstd", keys=["image"]),
    dict(type="Orientationd", keys=["image"], axcodes="RAS", labels=None),
    dict(type="Spacingd", keys=["image"], pixdim=(1.5, 1.5, 2.0), mode="bilinear"),
    _window,
    dict(type="CropForegroundd", keys=["image"], source_key="image", allow_smaller=True),
]
_data = dict(data_root=data_root, data_list="dataset_0.json", classes=classes)
train_dataloader = dict(dataset=dict(_data, transforms=_train_transforms))  # four crops of a volume
val_dataloader = dict(dataset=dict(_data, transforms=_test_transforms))
test_dataloader = val_dataloader
model = dict(inference=dict(roi_size=_crop, overlap=0.5, sw_batch_size=4))
