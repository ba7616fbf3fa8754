"""Axial slices of volumes, resized to 224x224: training on single slices, testing slice by slice on whole volumes."""

train_dataloader = dict(
    batch_size=4,  # volumes, with six slices each
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
model = dict(
    type="VolumeSegmentor",
    inference=dict(roi_size=(224, 224), overlap=0.0, sw_batch_size=16),
    loss=dict(batch=True),
)
tta_options = dict(model=dict(inference=dict(flips=(0, 1))))
