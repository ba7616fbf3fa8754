"""Vim-S with UPerNet on ADE20K: 60k iterations, batch 32 (4 GPUs with 8 images), sliding-window test.

The class token is dropped; the heads read the residual stream after blocks 6, 12, 18 and 24, rescaled to four strides.
The reference reads the first three one rotary embedding later.
"""

_base_ = [
    "../_base_/upernet.py",
    "../_base_/ade20k_512.py",
    "../_base_/segmentation_160k.py",
    "../_base_/segmentation_runtime.py",
]
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(
        model_name="vim_small_patch16_224",
        checkpoint=True,
        img_size=512,
        rope=True,
        out_indices=(5, 11, 17, 23),
        out_norm=False,
        tap="stream",
        drop_path_rate=0.1,
    ),
    neck=dict(type="Feature2Pyramid", embed_dim=384, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(_delete_=True, mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    constructor="TimmLayerDecay",
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    # The reference leaves out parameters of one dimension and biases, but neither A nor, by a slip, the position table.
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay=0.95,
        custom_keys={".A_log": dict(decay_mult=1.0), "backbone.model.pos_embed": dict(decay_mult=1.0)},
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=60000, by_epoch=False),
]
train_cfg = dict(max_iters=60000, val_interval=6000)
train_dataloader = dict(batch_size=8)
auto_scale_lr = dict(base_batch_size=32)
published = dict(
    mIoU=dict(single_scale=44.9),
    checkpoint=None,
    source="https://github.com/hustvl/Vim; figure of https://arxiv.org/abs/2401.09417 from memory, unverified",
    recipe="seg/scripts/ft_vim_small_upernet.sh",  # it sets what the heads read and the layer decay
)
