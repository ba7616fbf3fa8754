"""The feature pyramid from one map, recomputed with plain functions."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmcv")
from mmengine.registry import MODELS

from vision_ssm.openmmlab import SimpleFeaturePyramid


def channel_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """LayerNorm over the channels of a map, from its definition."""
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def filled(**kwargs) -> SimpleFeaturePyramid:
    """A pyramid whose every parameter is random, norms too, in float64."""
    pyramid = SimpleFeaturePyramid(**kwargs).double()
    for parameter in pyramid.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return pyramid


@pytest.mark.parametrize("size", [(4, 4), (6, 9), (5, 7)])
def test_shapes(size):
    pyramid = SimpleFeaturePyramid(16, 8, num_outs=6)
    maps = pyramid((torch.randn(2, 3, 8, 8), torch.randn(2, 16, *size)))  # reads the last map alone
    h, w = size
    half = (h // 2, w // 2)
    quarter = tuple((n + 1) // 2 for n in half)
    expected = [(4 * h, 4 * w), (2 * h, 2 * w), (h, w), half, quarter, tuple((n + 1) // 2 for n in quarter)]
    assert [tuple(one.shape) for one in maps] == [(2, 8, *size) for size in expected]


def test_values_are_those_of_the_layers_applied_by_hand():
    pyramid = filled(in_channels=8, out_channels=6)
    x = torch.randn(2, 8, 6, 4, dtype=torch.float64)
    found = pyramid((x,))

    def out(x, p):  # 1x1 convolution, norm, 3x3 convolution, norm; the convolutions without bias
        one, norm1, three, norm2 = p[0], p[1:3], p[3], p[4:6]
        return channel_norm(F.conv2d(channel_norm(F.conv2d(x, one), *norm1), three, padding=1), *norm2)

    four, two, one, half = (list(level.parameters()) for level in pyramid.levels)
    up = F.gelu(channel_norm(F.conv_transpose2d(x, four[0], four[1], stride=2), *four[2:4]))
    expected = [
        out(F.conv_transpose2d(up, four[4], four[5], stride=2), four[6:]),
        out(F.conv_transpose2d(x, two[0], two[1], stride=2), two[2:]),
        out(x, one),
        out(F.max_pool2d(x, 2), half),
    ]
    expected.append(F.max_pool2d(expected[3], kernel_size=1, stride=2))  # the extra level of the feature pyramids
    assert len(found) == 5
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_every_parameter_learns():
    pyramid = SimpleFeaturePyramid(8, 4)
    sum(one.square().mean() for one in pyramid((torch.randn(1, 8, 4, 4),))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pyramid.parameters() if p.ndim > 1)


def test_some_scales_only():
    pyramid = MODELS.build(
        dict(type="SimpleFeaturePyramid", in_channels=8, out_channels=4, scales=(2, 0.5), num_outs=2)
    )
    assert [one.shape[2] for one in pyramid((torch.randn(1, 8, 8, 8),))] == [16, 4]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(dict(scales=(4, 3)), "`scales` has 3: expected 4, 2, 1 or 0.5"), (dict(num_outs=3), "`num_outs` is 3: expected")],
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(8, 4, **wrong)
