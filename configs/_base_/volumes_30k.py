"""30k iterations of AdamW, linear warm-up, then polynomial decay."""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-5),
    clip_grad=dict(max_norm=12),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="PolyLR", eta_min=0.0, power=0.9, begin=500, end=30000, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=30000, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
