"""Vim-Ti with UPerNet on ADE20K: 60k iterations, batch 32 (4 GPUs with 8 images), sliding-window test.

The class token is dropped; the heads read the mixers' outputs after blocks 6, 12, 18 and 24, rescaled to four strides.
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
        model_name="vim_tiny_patch16_224",
        checkpoint=True,
        img_size=512,
        rope=False,
        out_indices=(5, 11, 17, 23),
        out_norm=False,
        tap="mixer",
        drop_path_rate=0.1,
    ),
    neck=dict(type="Feature2Pyramid", embed_dim=192, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[192] * 4, channels=192),
    auxiliary_head=dict(in_channels=192),
    test_cfg=dict(_delete_=True, mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    constructor="TimmLayerDecay",
    optimizer=dict(lr=2e-4, weight_decay=0.1),
    # The reference leaves out parameters of one dimension and biases, but neither A nor, by a slip, the position table.
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay=0.92,
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
    mIoU=dict(single_scale=41.0),
    checkpoint=None,
    params=12901100,  # of the network with its heads, from the published log
    source="https://github.com/hustvl/Vim; figure of https://arxiv.org/abs/2401.09417 from memory, unverified",
    recipe="seg/scripts/ft_vim_tiny_upernet.sh",  # it sets learning rate and weight decay
)
