"""LocalVMamba-T with Mask R-CNN on COCO, 12 epochs."""

_base_ = [
    "../_base_/mask_rcnn.py",
    "../_base_/coco_instance.py",
    "../_base_/detection_1x.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(model_name="local_vmamba_tiny", checkpoint=True, drop_path_rate=0.2),
)
published = dict(
    box_AP=46.7,
    mask_AP=42.2,
    checkpoint=None,
    source="https://github.com/hunto/LocalMamba; figures of https://arxiv.org/abs/2403.09338 from memory, unverified",
    recipe="detection/configs/local_mamba/mask_rcnn_local_vssm_tiny_fpn_coco.py",  # with fp16
)
