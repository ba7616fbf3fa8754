"""VMamba-T with UPerNet on ADE20K: the authors' recommended tiny model, s1l8."""

_base_ = "./vmamba_tiny_s1l8_upernet_ade20k.py"
