"""LMa-UNet, BTCV: 13 organs, 24 volumes to train on and 6 to validate on."""

_base_ = ["../_base_/btcv.py", "../_base_/volumes_30k.py", "../_base_/volumes_runtime.py"]
model = dict(
    network=dict(
        name="lma_unet_3d",
        in_chans=1,
        num_classes=14,
        features=(32, 64, 128, 256, 320),
        kernels=(3, 3, 3, 3, 3),
        strides=(1, 2, 2, 2, 2),
        window=(6, 6, 6),  # sides of the deepest map of a crop
        deep_supervision=True,
    ),
)
