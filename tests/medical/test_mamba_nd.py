"""Mamba-ND: its block by explicit permutation, sizes, conversion."""

import parity
import pytest
import timm
import torch

from vision_ssm.layers import Mamba
from vision_ssm.medical import mamba_nd


@pytest.mark.parametrize("index", range(8))
def test_block_scans_along_its_axes(index):
    torch.manual_seed(0)
    block, plain = mamba_nd.MambaNDBlock(8, index).double(), Mamba(8).double()
    plain.load_state_dict(block.mixer.state_dict())
    grid = (2, 3, 4)
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    axes = ((0, 1, 2), (0, 2, 1), (2, 1, 0))[index // 2 % 3]

    normed = block.norm(x)
    order = torch.arange(24).reshape(grid).permute(axes).flatten()
    order = order.flip(0) if index % 2 else order
    mixed = torch.empty_like(x)
    mixed[:, order] = plain(normed[:, order])
    torch.testing.assert_close(block(x, list(grid)), normed + mixed)


def test_other_channels_classes_and_sizes_reach_every_parameter():
    torch.manual_seed(0)
    model = timm.create_model("mamba_nd_3d_test", in_chans=2, num_classes=3, input_size=(32, 16, 48), drop_rate=0.1)
    y = model(torch.randn(1, 2, 32, 16, 48))
    assert y.shape == (1, 3, 32, 16, 48)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_sizes():
    model = timm.create_model("mamba_nd_3d_test")
    with pytest.raises(ValueError, match=r"expected \(32, 32, 32\), the size that the positions are for"):
        model(torch.randn(1, 1, 32, 32, 48))
    with pytest.raises(ValueError, match=r"expected \(batch, 1, depth, height, width\)"):
        model(torch.randn(1, 2, 32, 32, 32))
    with pytest.raises(ValueError, match="`input_size` is 40: expected one or three multiples of 16"):
        timm.create_model("mamba_nd_3d_test", input_size=40)
    with pytest.raises(ValueError, match="expected three blocks before 4"):
        timm.create_model("mamba_nd_3d_test", depth=4)


def test_conversion_leaves_our_own_names_and_drops_the_last_block():
    model = timm.create_model("mamba_nd_small_btcv", input_size=64, device="meta")
    own = model.state_dict()
    assert mamba_nd.checkpoint_filter_fn(own, model) == own
    published = {
        k: torch.empty(v, device="meta") for k, v in parity.load("mamband_3d_small_btcv")["state_dict"].items()
    }
    dropped = sum(value.numel() for name, value in published.items() if name.startswith("vit.layers.23."))
    converted = mamba_nd.checkpoint_filter_fn(published, model)
    assert dropped > 0
    assert sum(map(torch.numel, converted.values())) == sum(map(torch.numel, published.values())) - dropped
