"""SegMamba's layer alone, and the sizes that it takes."""

import parity
import pytest
import timm
import torch

from vision_ssm.checkpoints import mamba_parameters, rename, stack_paths
from vision_ssm.layers import Mamba, PathMamba, TriOrientatedMamba
from vision_ssm.medical import TokenMixer
from vision_ssm.scan import row


@torch.no_grad()
def test_layer_golden():
    entry = parity.load("segmamba_mambalayer")
    state = {name: torch.from_numpy(value) for name, value in parity.make_state_dict(entry).items()}
    state = rename(state, [(r"^mamba\.", "layer.mixer."), (r"^norm\.", "layer.norm.")])
    state = stack_paths(state, mamba_parameters(("", "_b", "_s")))
    layer = TokenMixer(48, TriOrientatedMamba(48, slices=8), residual=True).eval()
    layer.load_state_dict({name.removeprefix("layer."): value for name, value in state.items()})
    for shape in entry["inputs"]:
        y = layer(torch.from_numpy(parity.make_input(shape)))
        expected = entry["outputs"]["x".join(map(str, shape)) + ":out"]
        assert parity.compare(y.numpy(), expected) <= entry["tolerance"]


def _direction(tri: PathMamba, k: int) -> Mamba:
    """One direction as a causal mixer of its own."""
    one = Mamba(tri.in_proj.in_features)
    one.in_proj.weight, one.out_proj.weight = tri.in_proj.weight, tri.out_proj.weight
    for name in ("conv1d.weight", "conv1d.bias", "ssm.x_proj", "ssm.dt_proj", "ssm.dt_bias", "ssm.A_log", "ssm.D"):
        one.get_parameter(name).data = tri.get_parameter(name)[k : k + 1]
    return one


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 1 / 3])
def test_three_directions(scale):
    tri, x = TriOrientatedMamba(8, slices=4, scale=scale), torch.randn(2, 12, 8)
    across = torch.arange(12).reshape(4, 3).T.flatten()  # one token of each slice in turn
    expected = _direction(tri, 0)(x) + _direction(tri, 1)(x.flip(1)).flip(1)
    expected[:, across] += _direction(tri, 2)(x[:, across])
    torch.testing.assert_close(tri(x), scale * expected)


@torch.no_grad()
def test_one_path_is_mamba():
    layer, x = PathMamba(8, (row(),)), torch.randn(2, 12, 8)
    torch.testing.assert_close(layer(x, [3, 4]), _direction(layer, 0)(x))


def test_sizes():
    model = timm.create_model("segmamba", device="meta")
    assert model(torch.empty(1, 1, 96, 96, 96, device="meta")).shape == (1, 13, 96, 96, 96)
    with pytest.raises(ValueError, match=r"expected multiples of \(16, 16, 16\)"):
        model(torch.empty(1, 1, 96, 96, 100, device="meta"))
    with pytest.raises(ValueError, match="its map at stride 8 has 216 voxels, expected a multiple of 16"):
        model(torch.empty(1, 1, 48, 48, 48, device="meta"))
