"""Loaders, metrics and model of medical volumes and pictures; a config adds the set, its transforms and a network."""

train_dataloader = dict(
    batch_size=1,  # volumes
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="VolumeDataset", split="training", cache_rate=1.0),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="VolumeDataset", split="validation", test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="VolumeMetrics", hd95=False)
test_evaluator = dict(type="VolumeMetrics")
model = dict(type="VolumeSegmentor", loss=dict(batch=True))
