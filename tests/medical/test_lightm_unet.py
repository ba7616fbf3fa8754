"""LightM-UNet: its Mamba layer by formula, sizes, conversion."""

import pytest
import timm
import torch
import torch.nn.functional as F

from vision_ssm.medical import lightm_unet

NAMES = ("lightm_unet_2d_test", "lightm_unet_3d_test")
SHAPES = {"lightm_unet_2d_test": (2, 2, 16, 24), "lightm_unet_3d_test": (2, 2, 8, 12, 16)}


def test_mamba_layer_norms_twice_with_one_norm():
    torch.manual_seed(0)
    layer = lightm_unet.MambaProjection(8, 16).double()
    with torch.no_grad():
        layer.skip_scale.fill_(0.7)
        layer.norm.weight.uniform_(0.5, 1.5)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    tokens = x.permute(0, 2, 3, 1).reshape(2, 15, 8)

    def norm(t: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(t, (8,), layer.norm.weight, layer.norm.bias)

    mixed = norm(layer.mixer(norm(tokens)) + 0.7 * tokens) @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x), mixed.reshape(2, 3, 5, 16).permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_other_channels_and_classes_reach_every_parameter(name):
    model = timm.create_model(name, in_chans=2, num_classes=5)
    shape = SHAPES[name]
    y = model(torch.randn(shape))
    assert y.shape == (2, 5, *shape[2:])
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_conversion_leaves_our_own_names(name):
    model = timm.create_model(name)
    own = model.state_dict()
    assert lightm_unet.checkpoint_filter_fn(own, model) == own


def test_sizes():
    with pytest.raises(ValueError, match=r"expected multiples of \(4, 4\)"):
        timm.create_model("lightm_unet_2d_test")(torch.randn(1, 3, 16, 18))
    with pytest.raises(ValueError, match=r"expected multiples of \(8, 8, 8\)"):
        timm.create_model("lightm_unet_3d")(torch.randn(1, 1, 8, 12, 8))
    with pytest.raises(ValueError, match=r"expected \(batch, 1, depth, height, width\)"):
        timm.create_model("lightm_unet_3d_test")(torch.randn(1, 1, 16, 16))


def test_arguments_that_make_no_network():
    with pytest.raises(ValueError, match="12 channels: expected a multiple of 8"):
        timm.create_model("lightm_unet_2d_test", features=12)
    with pytest.raises(ValueError, match="`decoder_depths` has 3 entries: expected 2"):
        timm.create_model("lightm_unet_2d_test", decoder_depths=(1, 1, 1))
