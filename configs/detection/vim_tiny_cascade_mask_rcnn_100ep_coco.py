"""Vim-Ti with Cascade Mask R-CNN on COCO: ViTDet's recipe, 1024x1024, batch 64, 100 epochs counted in iterations.

One map of stride 16, the residual stream after the last block, becomes a pyramid. Rotary embedding, no class token.
"""

_base_ = [
    "../_base_/cascade_mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/detection_1x.py",
    "../_base_/detection_runtime.py",
]
_size = (1024, 1024)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),  # to the whole square; boxes still end where the image does
    backbone=dict(
        model_name="vim_tiny_patch16_224",
        checkpoint=True,
        img_size=1024,
        rope=True,
        out_indices=(23,),
        out_norm=False,
        drop_path_rate=0.1,
    ),
    neck=dict(_delete_=True, type="SimpleFeaturePyramid", in_channels=192, out_channels=256, num_outs=5),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=_size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=8,
    sampler=dict(_delete_=True, type="InfiniteSampler"),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=184375, val_interval=5000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", begin=0, end=184375, by_epoch=False, milestones=[163889, 177546], gamma=0.1),
]
optim_wrapper = dict(
    constructor="TimmLayerDecay",
    optimizer=dict(weight_decay=0.1),
    # The reference decays all but the position table: its exception for norms knows neither of the two kinds it has.
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay=0.837,
        flat_decay_mult=1.0,
        custom_keys={"backbone.model": dict(decay_mult=1.0), "backbone.model.pos_embed": dict(decay_mult=0.0)},
    ),
)
default_hooks = dict(logger=dict(log_metric_by_epoch=False))
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=64)
published = dict(
    box_AP=45.7,
    mask_AP=39.2,
    checkpoint=None,
    source="https://github.com/hustvl/Vim; figures of https://arxiv.org/abs/2401.09417 from memory, unverified",
    recipe="det/projects/ViTDet/configs/COCO/cascade_mask_rcnn_vimdet_t_100ep_adj1.py",
)
