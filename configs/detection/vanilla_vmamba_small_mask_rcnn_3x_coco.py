"""Vanilla-VMamba-S with Mask R-CNN on COCO, 36 epochs, multi-scale training."""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/detection_3x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="vanilla_vmamba_small", checkpoint=True, drop_path_rate=0.2),
)
published = dict(
    box_AP=49.7,
    mask_AP=44.0,
    checkpoint="https://github.com/MzeroMiko/VMamba/releases/download/%23v0det/vssmsmall_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34.pth",
    source="https://github.com/MzeroMiko/VMamba, assets/performance.md",
    recipe="detection/configs/vssm/mask_rcnn_vssm_fpn_coco_small_ms_3x.py",
)
