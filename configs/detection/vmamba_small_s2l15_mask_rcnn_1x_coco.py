"""VMamba-S[s2l15] with Mask R-CNN on COCO, 12 epochs."""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/detection_1x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="vmamba_small_s2l15", checkpoint=True, drop_path_rate=0.3),
)
published = dict(
    box_AP=48.7,
    mask_AP=43.7,
    checkpoint="https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_small_epoch_11.pth",
    source="https://github.com/MzeroMiko/VMamba, assets/performance.md",
    recipe="detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_small.py",
)
