"""Vanilla-VMamba-T with UPerNet on ADE20K."""

_base_ = [
    "../_base_/upernet.py",
    "../_base_/ade20k_512.py",
    "../_base_/segmentation_160k.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(model_name="vanilla_vmamba_tiny", checkpoint=True, drop_path_rate=0.3),
)
published = dict(
    mIoU=dict(single_scale=47.3, multi_scale=48.3),
    checkpoint="https://github.com/MzeroMiko/VMamba/releases/download/%23v0seg/vssmtiny_upernet_4xb4-160k_ade20k-512x512_iter_160000.pth",
    source="https://github.com/MzeroMiko/VMamba, assets/performance.md",
    recipe="segmentation/configs/vssm/upernet_vssm_4xb4-160k_ade20k-512x512_tiny.py",
)
