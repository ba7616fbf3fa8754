"""Digits in scenes, one class per pixel: a small VMamba with UPerNet, trained in minutes on two CPU cores.

Real handwriting (scikit-learn's scans) on textured ground, in ADE20K's layout; validation scenes show held-out scans.
The scenes are written to `data_root` where they are missing.
"""

_base_ = ["../_base_/upernet.py", "../_base_/segmentation_runtime.py"]
custom_imports = dict(imports=["vision_ssm.openmmlab", "vision_ssm.demo.scene_data", "vision_ssm.demo.sheet"])
data_root = "data/digit_scenes"
scenes = dict(train=4000, val=200, size=128, digits=(2, 5))
norm_cfg = dict(type="BN", requires_grad=True)
# Most pixels are background; Dice keeps the outlines tight all the same.
_cross_entropy = dict(
    type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0, class_weight=[0.4] + [1.0] * 10, avg_non_ignore=True
)
_dice = dict(type="DiceLoss", use_sigmoid=False, loss_weight=1.0)
# The usual start of the classifier (standard deviation 0.01) is for pretrained backbones: here it costs 800 steps.
_init = dict(type="Xavier", override=dict(name="conv_seg"))
model = dict(
    data_preprocessor=dict(size=(128, 128), seg_pad_val=0),  # weighted classes leave no room for an ignored one
    backbone=dict(model_name="vmamba_test", dim=32),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=48,
        num_classes=11,
        norm_cfg=norm_cfg,
        dropout_ratio=0.0,
        init_cfg=_init,
        loss_decode=[_cross_entropy, _dice],
    ),
    auxiliary_head=dict(
        in_channels=128,
        channels=32,
        num_classes=11,
        norm_cfg=norm_cfg,
        dropout_ratio=0.0,
        init_cfg=_init,
        loss_decode=dict(_cross_entropy, _delete_=True, loss_weight=0.4),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=scale, keep_ratio=True) for scale in ((96, 96), (128, 128), (160, 160))],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="DigitScenes", data_root=data_root, split="train", scenes=scenes, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="DigitScenes", data_root=data_root, split="val", scenes=scenes, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="TimmLayerDecay",
    clip_grad=dict(max_norm=5.0),
)
_iters = 2000
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=_iters, T_max=_iters - 100, eta_min=1e-5),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=_iters, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=300))
custom_hooks = [dict(type="PredictionSheet")]
