"""LocalVim-S with UPerNet on ADE20K: four normed maps of stride 16, the mixers' outputs after blocks 5, 10, 15, 20.

As in the reference's dense models the blocks have LayerNorms: they start with the weights of the classifier's RMSNorms.
"""

_base_ = [
    "../_base_/upernet.py",
    "../_base_/ade20k_512.py",
    "../_base_/segmentation_160k.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(
        model_name="local_vim_small",
        checkpoint=True,
        img_size=512,
        rms_norm=False,
        directions="searched",  # those of LocalVim-T, as the published config inherits them
        out_indices=(4, 9, 14, 19),
        tap="mixer",
        drop_path_rate=0.1,
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
published = dict(
    mIoU=dict(single_scale=46.4, multi_scale=47.5),
    checkpoint=None,
    source="https://github.com/hunto/LocalMamba; figures of https://arxiv.org/abs/2403.09338 from memory, unverified",
    recipe="segmentation/configs/local_mamba/upernet_local_vim-small_8xb2-160k_ade20k-512x512.py",
)
