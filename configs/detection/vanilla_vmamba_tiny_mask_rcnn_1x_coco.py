"""Vanilla-VMamba-T with Mask R-CNN on COCO, 12 epochs."""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/detection_1x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="vanilla_vmamba_tiny", checkpoint=True, drop_path_rate=0.2),
)
published = dict(
    box_AP=46.5,
    mask_AP=42.1,
    checkpoint="https://github.com/MzeroMiko/VMamba/releases/download/%23v0det/vssmtiny_mask_rcnn_swin_fpn_coco_epoch_12.pth",
    source="https://github.com/MzeroMiko/VMamba, assets/performance.md",
    recipe="detection/configs/vssm/mask_rcnn_vssm_fpn_coco_tiny.py",
)
