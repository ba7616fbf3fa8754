"""LightM-UNet, BTCV: 13 organs, 24 volumes to train on and 6 to validate on."""

_base_ = ["../_base_/btcv.py", "../_base_/volumes_30k.py", "../_base_/volumes_runtime.py"]
model = dict(network=dict(name="lightm_unet_3d", in_chans=1, num_classes=14))
