"""Digits in scenes, a box and a mask each: a small VMamba with Mask R-CNN, trained in minutes on two CPU cores.

The scenes of `digits_segmentation.py`, in COCO's layout.
"""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/detection_runtime.py"]
custom_imports = dict(
    imports=["vision_ssm.openmmlab", "vision_ssm.openmmlab.tta", "vision_ssm.demo.scene_data", "vision_ssm.demo.sheet"]
)
data_root = "data/digit_scenes"
scenes = dict(train=4000, val=200, size=128, digits=(2, 5))
_channels = 48
model = dict(
    backbone=dict(model_name="vmamba_test", dim=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=_channels, num_outs=4),
    rpn_head=dict(
        in_channels=_channels,
        feat_channels=_channels,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=_channels, featmap_strides=[4, 8, 16], finest_scale=24),
        bbox_head=dict(in_channels=_channels, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=_channels, featmap_strides=[4, 8, 16], finest_scale=24),
        mask_head=dict(in_channels=_channels, num_convs=2, conv_out_channels=_channels, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=64),
        rcnn=dict(sampler=dict(num=48)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
_tta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=scale, keep_ratio=True) for scale in ((128, 128), (160, 160))],
            [dict(type="RandomFlip", prob=0.0)],  # a flipped digit is another one
            [dict(type="LoadAnnotations", with_bbox=True, with_mask=True)],
            [dict(type="PackDetInputs", meta_keys=_tta_keys)],
        ],
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="DigitInstances", data_root=data_root, split="train", scenes=scenes, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="DigitInstances", data_root=data_root, split="val", scenes=scenes, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric", ann_file=data_root + "/coco/instances_val.json", metric=["bbox", "segm"], format_only=False
)
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="TimmLayerDecay",
    clip_grad=dict(max_norm=5.0),
)
_iters = 1000
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=_iters, T_max=_iters - 100, eta_min=1e-5),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=_iters, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(log_metric_by_epoch=False))
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type="PredictionSheet")]
