"""A whole network in MMSegmentation: cross-entropy and Dice, 20k iterations of AdamW, cosine decay."""

_base_ = "./segmentation_runtime.py"
custom_imports = dict(imports=["vision_ssm.openmmlab", "vision_ssm.openmmlab.network"], allow_failed_imports=False)
model = dict(
    type="NetworkSegmentor",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[0.0],  # of every channel
        std=[255.0],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(224, 224),
    ),
    loss_decode=[
        dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True, loss_weight=0.4),
        dict(type="DiceLoss", use_sigmoid=False, loss_weight=0.6),
    ],
    test_cfg=dict(mode="whole"),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-2))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-5, T_max=20000, begin=0, end=20000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=20000, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(save_best="mDice"))
