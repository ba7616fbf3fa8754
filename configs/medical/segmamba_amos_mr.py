"""SegMamba, AMOS 2022, the MR volumes: 15 organs.

`amos_mr.json`, of `tools/prepare_medical.py amos_mr`, lists AMOS's own 40 to train on and 20 to validate on: its cases
beyond 500 are MR.
"""

_base_ = ["../_base_/volumes_data.py", "../_base_/volumes_30k.py", "../_base_/volumes_runtime.py"]
data_root = "data/amos22"
classes = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
    "prostate or uterus",
)  # fmt: skip
_crop = (128, 128, 64)
_both = ["image", "label"]
_scale = dict(type="NormalizeIntensityd", keys=["image"], nonzero=True, channel_wise=True)
_train_transforms = [
    dict(type="LoadImaged", keys=_both),
    dict(type="EnsureChannelFirstd", keys=_both),
    dict(type="Orientationd", keys=_both, axcodes="RAS", labels=None),
    dict(type="Spacingd", keys=_both, pixdim=(1.5, 1.5, 3.0), mode=["bilinear", "nearest"]),
    dict(type="CropForegroundd", keys=_both, source_key="image", allow_smaller=True),
    _scale,
    dict(type="SpatialPadd", keys=_both, spatial_size=_crop),
    dict(
        type="RandCropByPosNegLabeld",
        keys=_both,
        label_key="label",
        spatial_size=_crop,
        pos=1,
        neg=1,
        num_samples=2,
    ),
    dict(type="RandFlipd", keys=_both, spatial_axis=0, prob=0.1),
    dict(type="RandFlipd", keys=_both, spatial_axis=1, prob=0.1),
    dict(type="RandFlipd", keys=_both, spatial_axis=2, prob=0.1),
    dict(type="RandScaleIntensityd", keys=["image"], factors=0.1, prob=0.5),
    dict(type="RandShiftIntensityd", keys=["image"], offsets=0.1, prob=0.5),
]
_test_transforms = [
    dict(type="LoadImaged", keys=["image"]),
    dict(type="EnsureChannelFirstd", keys=["image"]),
    dict(type="Orientationd", keys=["image"], axcodes="RAS", labels=None),
    dict(type="Spacingd", keys=["image"], pixdim=(1.5, 1.5, 3.0), mode="bilinear"),
    dict(type="CropForegroundd", keys=["image"], source_key="image", allow_smaller=True),
    _scale,
]
_data = dict(data_root=data_root, data_list="amos_mr.json", classes=classes)
train_dataloader = dict(dataset=dict(_data, transforms=_train_transforms))
val_dataloader = dict(dataset=dict(_data, transforms=_test_transforms))
test_dataloader = val_dataloader
model = dict(
    network=dict(name="segmamba", in_chans=1, num_classes=16),
    inference=dict(roi_size=_crop, overlap=0.5, sw_batch_size=2),
)
