"""LocalVMamba-T with UPerNet on ADE20K."""

_base_ = [
    "../_base_/upernet.py",
    "../_base_/ade20k_512.py",
    "../_base_/segmentation_160k.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(model_name="local_vmamba_tiny", checkpoint=True, drop_path_rate=0.1),
)
published = dict(
    mIoU=dict(single_scale=47.9, multi_scale=49.1),
    checkpoint=None,
    source="https://github.com/hunto/LocalMamba; figures of https://arxiv.org/abs/2403.09338 from memory, unverified",
    recipe="segmentation/configs/local_mamba/upernet_local_vssm_tiny_4xb4-160k_ade20k-512x512.py",
)
