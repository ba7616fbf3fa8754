"""Vanilla-VMamba-B with Mask R-CNN on COCO, 12 epochs."""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/detection_1x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="vanilla_vmamba_base", checkpoint=True, drop_path_rate=0.2),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
published = dict(
    box_AP=48.6,
    mask_AP=43.3,
    checkpoint="https://github.com/MzeroMiko/VMamba/releases/download/%23v0det/vssmbase_mask_rcnn_swin_fpn_coco_epoch_12.pth",
    source="https://github.com/MzeroMiko/VMamba, assets/performance.md",
    recipe="detection/configs/vssm/mask_rcnn_vssm_fpn_coco_base.py",
)
