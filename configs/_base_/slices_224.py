"""Axial slices of volumes, resized to 224x224: training on single slices, testing slice by slice on whole volumes."""

_base_ = "./volumes_data.py"
train_dataloader = dict(batch_size=4)  # volumes, with six slices each
model = dict(inference=dict(roi_size=(224, 224), overlap=0.0, sw_batch_size=16))
