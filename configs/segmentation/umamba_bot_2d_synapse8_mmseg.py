"""U-Mamba Bot in 2D, Synapse: 8 organs, in grey slices of 224x224, with deep supervision.

The network has six stages, the last at 7x7 pixels. Optimiser and schedule are nnU-Net's, but for the clipping.
"""

_base_ = ["../_base_/synapse_slices_224.py", "../_base_/network_20k.py"]
model = dict(
    network=dict(
        name="umamba_bot_2d",
        in_chans=1,
        num_classes=9,
        features=(32, 64, 128, 256, 512, 512),
        deep_supervision=True,
    ),
    loss_decode=[
        dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0),
        dict(type="DiceLoss", use_sigmoid=False, loss_weight=1.0),
    ],
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5),
    clip_grad=dict(max_norm=12),
)
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=20000, by_epoch=False)]
