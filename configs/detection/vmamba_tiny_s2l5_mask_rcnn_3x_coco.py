"""VMamba-T[s2l5] with Mask R-CNN on COCO, 36 epochs, multi-scale training."""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/detection_3x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="vmamba_tiny_s2l5", checkpoint=True, drop_path_rate=0.2),
)
published = dict(
    box_AP=48.9,
    mask_AP=43.7,
    checkpoint="https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_epoch_36.pth",
    source="https://github.com/MzeroMiko/VMamba, assets/performance.md",
    recipe="detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_tiny1_ms_3x.py",
)
