"""The operators that stand in for mmcv's compiled ones, called through mmcv, against their formulas in float64."""

import os
import subprocess
import sys
from itertools import product
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
from vision_ssm.openmmlab import install

BRIDGED = install()
import mmcv.ops as ops  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not BRIDGED, reason="a compiled mmcv is installed")
DTYPES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(actual.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)


def gradcheck(function, *inputs):
    assert torch.autograd.gradcheck(function, [x.detach().double().requires_grad_() for x in inputs])


# Boxes


def some_boxes(n=40):
    corner = torch.rand(n, 2, dtype=torch.float64) * 20
    return torch.cat((corner, corner + 3 + torch.rand(n, 2, dtype=torch.float64) * 12), 1), torch.rand(n).double()


def iou(a, b, offset):
    def area(x1, y1, x2, y2):
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return both / (area(*a) + area(*b) - both)


def greedy(boxes, scores, threshold, offset=0):
    """Groups of a kept box and those it suppresses."""
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    groups = []
    while left:
        groups.append([left[0]] + [i for i in left[1:] if iou(boxes[left[0]], boxes[i], offset) > threshold])
        left = [i for i in left if i not in groups[-1]]
    return groups


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nms(dtype, offset):
    boxes, scores = some_boxes()
    kept = [group[0] for group in greedy(boxes.tolist(), scores.tolist(), 0.4, offset)]
    dets, indices = ops.nms(boxes.to(dtype), scores.to(dtype), 0.4, offset)
    assert indices.tolist() == kept and dets.dtype == dtype
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[kept].to(dtype))


def test_offset_changes_what_nms_keeps():
    boxes = torch.tensor([[0.0, 0, 3, 3], [1, 0, 4, 3]])  # they overlap by 6/12, with the offset by 12/20
    scores = torch.tensor([0.9, 0.8])
    assert [len(ops.nms(boxes, scores, 0.55, offset)[1]) for offset in (0, 1)] == [2, 1]


def test_nms_of_none_and_of_numpy():
    assert ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1].shape == (0,)
    boxes, scores = (x.numpy() for x in some_boxes(5))
    assert isinstance(ops.nms(boxes, scores, 0.5)[0], np.ndarray)


def test_batched_nms_keeps_classes_apart():
    boxes, scores = some_boxes()
    classes = torch.arange(40) % 3
    kept = []
    for c in range(3):
        members = (classes == c).nonzero().flatten()
        kept += [int(members[g[0]]) for g in greedy(boxes[members].tolist(), scores[members].tolist(), 0.3)]
    dets, indices = ops.batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.3))
    assert indices.tolist() == sorted(kept, key=lambda i: -scores[i])
    assert torch.equal(dets[:, :4], boxes[indices])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(method, offset):
    boxes, scores = some_boxes()
    threshold, sigma, floor_ = 0.3, 0.5, 0.2
    left, expected = dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=left.get)
        expected.append((best, left.pop(best)))
        for i in left:
            overlap = iou(boxes[best].tolist(), boxes[i].tolist(), offset)
            if method == "gaussian":
                left[i] *= np.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i] *= 1 - overlap if method == "linear" else 0
        left = {i: score for i, score in left.items() if score >= floor_}
    dets, indices = ops.soft_nms(boxes, scores, threshold, sigma, floor_, method, offset)
    assert 1 < len(indices) < len(boxes)
    assert indices.tolist() == [i for i, _ in expected]
    close(dets[:, 4], [score for _, score in expected])
    assert torch.equal(dets[:, :4], boxes[indices])


def test_soft_nms_of_boxes_without_area():
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 2, 2]])
    dets, indices = ops.soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method="gaussian")
    assert indices.tolist() == [0, 1, 2] and dets[:, 4].isfinite().all()
    assert ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))[1].shape == (0,)


def test_nms_match():
    boxes, scores = some_boxes()
    groups = ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.3)
    assert [g.tolist() for g in groups] == greedy(boxes.tolist(), scores.tolist(), 0.3)


# Regions

FEATURES = torch.randn(2, 3, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
# in units of half a pixel: inside, fractional, beyond the map on each side, narrower than a pixel, outside
ROIS = torch.tensor(
    [[0, 2, 2, 14, 12], [1, 1.3, 4.7, 17.1, 16.2], [1, -9, -7, 30, 25], [0, 5.2, 5.1, 5.9, 6.3], [0, 40, 40, 50, 50]],
    dtype=torch.float64,
)


def bilinear(image, y, x, clamp):
    """A point of image [H, W]. RoIAlign clamps points up to a pixel outside, deformable convolution fades them out."""
    height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    if clamp:
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    value = 0.0
    for i, j in product((floor(y), floor(y) + 1), (floor(x), floor(x) + 1)):
        if 0 <= i < height and 0 <= j < width:
            value += float(image[i, j]) * (1 - abs(y - i)) * (1 - abs(x - j))
    return value


def align(features, rois, size, scale, ratio, mode, aligned):
    output = np.zeros((len(rois), features.shape[1], *size))
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in corners)
        extent = [y2 - y1, x2 - x1] if aligned else [max(y2 - y1, 1), max(x2 - x1, 1)]
        bin_y, bin_x = extent[0] / size[0], extent[1] / size[1]
        count_y, count_x = (ratio or ceil(b) for b in (bin_y, bin_x))
        for c, i, j in product(range(features.shape[1]), range(size[0]), range(size[1])):
            samples = [
                bilinear(
                    features[int(image), c].numpy(),
                    y1 + bin_y * (i + (a + 0.5) / count_y),
                    x1 + bin_x * (j + (b + 0.5) / count_x),
                    clamp=True,
                )
                for a, b in product(range(count_y), range(count_x))
            ]
            output[r, c, i, j] = np.mean(samples) if mode == "avg" else max(samples)
    return output


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(mode, ratio, aligned):
    size, scale = (2, 3), 0.5
    expected = align(FEATURES, ROIS, size, scale, ratio, mode, aligned)
    close(ops.roi_align(FEATURES, ROIS, size, scale, ratio, mode, aligned), expected)
    gradcheck(lambda x: ops.roi_align(x, ROIS, size, scale, ratio, mode, aligned), FEATURES[:, :2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_in_other_precisions(mode, dtype):
    expected = align(FEATURES.to(dtype).double(), ROIS[:2], (2, 2), 0.5, 2, mode, True)
    features = FEATURES.to(dtype).detach().requires_grad_()
    output = ops.RoIAlign((2, 2), 0.5, 2, mode)(features, ROIS[:2])
    close(output, expected, DTYPES[dtype])
    output.sum().backward()
    assert output.dtype == features.grad.dtype == dtype and features.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_of_no_region_and_of_a_point(mode):
    assert ops.roi_align(FEATURES, ROIS[:0], 2, 1.0, 0, mode, True).shape == (0, 3, 2, 2)
    features = FEATURES.clone().requires_grad_()
    output = ops.roi_align(features, torch.tensor([[0.0, 3, 3, 3, 3]]), 2, 1.0, 0, mode, True)
    output.sum().backward()
    assert not output.any() and not features.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_roi_pool(dtype):
    features, size, scale = FEATURES.to(dtype), (2, 3), 0.5
    rois = torch.cat((ROIS, torch.tensor([[0.0, 8, 8, 2, 2]], dtype=ROIS.dtype)))  # the last is inside out
    expected = np.zeros((len(rois), 3, *size))
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for i, j in product(range(size[0]), range(size[1])):
            rows = slice(*(min(max(f(y1 + n * (y2 - y1) / size[0]), 0), 9) for f, n in ((floor, i), (ceil, i + 1))))
            columns = slice(*(min(max(f(x1 + n * (x2 - x1) / size[1]), 0), 11) for f, n in ((floor, j), (ceil, j + 1))))
            window = features[int(image), :, rows, columns].double().flatten(1)
            if x2 > x1 and window.numel():
                expected[r, :, i, j] = window.amax(1)
    output = ops.RoIPool(size, scale)(features, rois)
    assert output.dtype == dtype
    close(output, expected, 0)
    if dtype == torch.float64:
        gradcheck(lambda x: ops.roi_pool(x, rois, size, scale), features[:, :2])


# Deformable convolutions


def deform(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """[N, O, H', W'], each tap read at its own fractional place."""
    (n, channels, _, _), (outputs, per_group, kh, kw) = x.shape, weight.shape
    result = np.zeros((n, outputs, *offset.shape[2:]))
    for b, o, i, j in np.ndindex(*result.shape):
        total = 0.0 if bias is None else float(bias[o])
        for c, u, v in np.ndindex(per_group, kh, kw):
            channel = o // (outputs // groups) * per_group + c
            tap = channel // (channels // deform_groups) * kh * kw + u * kw + v
            y = i * stride[0] - padding[0] + u * dilation[0] + float(offset[b, 2 * tap, i, j])
            z = j * stride[1] - padding[1] + v * dilation[1] + float(offset[b, 2 * tap + 1, i, j])
            value = bilinear(x[b, channel], y, z, clamp=False) * float(weight[o, c, u, v])
            total += value * (1 if mask is None else float(mask[b, tap, i, j]))
        result[b, o, i, j] = total
    return result


# stride, padding, dilation, groups, deform_groups
CONVOLUTIONS = [((1, 1), (0, 0), (1, 1), 1, 1), ((2, 1), (1, 2), (1, 2), 2, 2), ((1, 2), (2, 0), (2, 1), 1, 4)]


def conv_case(stride, padding, dilation, groups, deform_groups):
    x, weight = torch.randn(2, 4, 5, 4).double(), torch.randn(4, 4 // groups, 3, 2).double()
    out = [(s + 2 * p - d * (k - 1) - 1) // t + 1 for s, p, d, k, t in zip((5, 4), padding, dilation, (3, 2), stride)]
    offset = torch.randn(2, deform_groups * 12, *out).double() * 1.5
    return x, offset, torch.rand(2, deform_groups * 6, *out).double(), weight, torch.randn(4).double()


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_deform_conv(case):
    x, offset, _, weight, _ = conv_case(*case)
    expected = deform(x.numpy(), offset, None, weight, None, *case)
    close(ops.deform_conv2d(x, offset, weight, *case), expected)
    close(ops.deform_conv2d(x, offset, weight, *case, False, 1), expected)  # in steps of one image
    gradcheck(lambda *inputs: ops.deform_conv2d(*inputs, *case), x, offset, weight)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_modulated_deform_conv(case, with_bias):
    x, offset, mask, weight, bias = conv_case(*case)
    layer = ops.ModulatedDeformConv2d(4, 4, (3, 2), *case, bias=with_bias).double()
    layer.weight.data = weight
    if with_bias:
        layer.bias.data = bias
    expected = deform(x.numpy(), offset, mask, weight, bias if with_bias else None, *case)
    close(layer(x, offset, mask), expected)
    inputs = (x, offset, mask, weight) + ((bias,) if with_bias else ())
    gradcheck(lambda *t: ops.modulated_deform_conv2d(*t, *(() if with_bias else (None,)), *case), *inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_deform_conv_in_other_precisions(dtype):
    case = CONVOLUTIONS[1]
    inputs = [t.to(dtype).detach().requires_grad_() for t in conv_case(*case)]
    x, offset, mask, weight, bias = (t.detach().double() for t in inputs)
    output = ops.modulated_deform_conv2d(*inputs, *case)
    close(output, deform(x.numpy(), offset, mask, weight, bias, *case), DTYPES[dtype] * 4)
    output.sum().backward()
    assert all(t.grad.dtype == dtype and t.grad.isfinite().all() for t in inputs)


def test_learning_rate_of_offsets_is_honoured():
    """MMEngine looks for deformable convolutions only if it believes that mmcv's operators exist."""
    from mmengine.optim import build_optim_wrapper

    model = torch.nn.Sequential(ops.DeformConv2dPack(2, 2, 3))
    config = dict(optimizer=dict(type="SGD", lr=1.0), paramwise_cfg=dict(dcn_offset_lr_mult=0.1))
    rates = {id(g["params"][0]): g["lr"] for g in build_optim_wrapper(model, config).optimizer.param_groups}
    assert rates[id(model[0].conv_offset.weight)] == 0.1 and rates[id(model[0].weight)] == 1.0


# Losses


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_loss(gamma, weighted):
    logits, alpha = torch.randn(7, 5).double() * 3, 0.3
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 2])  # 5 is background
    weight = torch.rand(5).double() if weighted else None
    expected = np.zeros((7, 5))
    for n, c in np.ndindex(7, 5):
        p = 1 / (1 + np.exp(-logits[n, c].item()))
        positive = labels[n] == c
        loss = -alpha * (1 - p) ** gamma * np.log(p) if positive else -(1 - alpha) * p**gamma * np.log(1 - p)
        expected[n, c] = loss * (weight[labels[n]].item() if weighted and labels[n] < 5 else 1)
    close(ops.sigmoid_focal_loss(logits, labels, gamma, alpha, weight, "none"), expected)
    close(ops.SigmoidFocalLoss(gamma, alpha, weight)(logits, labels), expected.sum() / 7)
    gradcheck(lambda x: ops.sigmoid_focal_loss(x, labels, gamma, alpha, weight, "none"), logits)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_softmax_focal_loss(gamma, weighted):
    logits, alpha = torch.randn(6, 4).double() * 3, 0.3
    labels = torch.tensor([0, 1, 2, 3, -1, 2])  # -1 is ignored
    weight = torch.rand(4).double() if weighted else None
    expected = np.zeros(6)
    for n, label in enumerate(labels.tolist()):
        p = np.exp(logits[n].numpy()) / np.exp(logits[n].numpy()).sum()
        if label >= 0:
            expected[n] = -alpha * (1 - p[label]) ** gamma * np.log(p[label]) * (weight[label] if weighted else 1)
    close(ops.softmax_focal_loss(logits, labels, gamma, alpha, weight, "none"), expected)
    close(ops.SoftmaxFocalLoss(gamma, alpha, weight)(logits, labels), expected.sum() / 6)
    gradcheck(lambda x: ops.softmax_focal_loss(x, labels, gamma, alpha, weight, "sum"), logits)


@pytest.mark.parametrize("loss", [ops.sigmoid_focal_loss, ops.softmax_focal_loss])
@pytest.mark.parametrize("dtype", DTYPES)
def test_focal_losses_stay_finite(loss, dtype):
    logits = torch.tensor([[300.0, -300, 0], [-300, 300, 1]], dtype=dtype, requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        value = loss(logits, torch.tensor([0, 0]), gamma, 0.25, None, "sum")
        value.backward()
        assert value.dtype == dtype and value.isfinite() and logits.grad.isfinite().all()


# Attention


def test_multi_scale_deformable_attention():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    value = torch.randn(2, 26, 2, 3).double()
    locations = torch.rand(2, 4, 2, 2, 3, 2).double() * 1.2 - 0.1
    weights = torch.rand(2, 4, 2, 2, 3).double()
    expected = np.zeros((2, 4, 2, 3))
    for n, q, head, level, point, c in np.ndindex(2, 4, 2, 2, 3, 3):
        height, width = shapes[level].tolist()
        image = value[n, starts[level] : starts[level] + height * width, head, c].view(height, width)
        x, y = (locations[n, q, head, level, point] * torch.tensor([width, height]) - 0.5).tolist()
        sample = bilinear(image.numpy(), y, x, clamp=False)
        expected[n, q, head, c] += weights[n, q, head, level, point].item() * sample

    def attend(value, locations, weights):
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)

    close(attend(value, locations, weights), expected.reshape(2, 4, 6))
    gradcheck(attend, value, locations, weights)


# The module itself


def test_other_operators_fail_by_name():
    boxes = torch.tensor([[1.0, 1, 2, 2, 0.3]])
    with pytest.raises(NotImplementedError, match=r"box_iou_rotated .*compiled mmcv"):
        ops.box_iou_rotated(boxes, boxes)
    with pytest.raises(NotImplementedError, match=r"carafe_forward .*compiled mmcv"):
        ops.carafe(torch.randn(1, 4, 2, 2), torch.randn(1, 9, 4, 4), 3, 1, 2)


def test_installing_again_changes_nothing():
    before = sys.modules["mmcv._ext"]
    assert install() and sys.modules["mmcv._ext"] is before is sys.modules["mmcv"]._ext
    assert not hasattr(before, "__wrapped__")  # what inspect asks of a module is no operator


def test_environment_report():
    from mmcv.utils.env import collect_env

    assert "torchvision" in collect_env()["MMCV Compiler"]


def test_sync_batchnorm_is_reverted():
    from mmengine.model import revert_sync_batchnorm

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(torch.nn.SyncBatchNorm(2), ops.SyncBatchNorm(2))
    finally:
        torch.distributed.destroy_process_group()
    model = revert_sync_batchnorm(model)
    assert not any(isinstance(m, (torch.nn.SyncBatchNorm, ops.SyncBatchNorm)) for m in model)
    assert model(torch.randn(2, 2, 3, 3)).shape == (2, 2, 3, 3)


def test_both_libraries_import():
    pytest.importorskip("mmseg")
    pytest.importorskip("mmdet")
    code = "import vision_ssm.openmmlab, mmseg.models, mmdet.models"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.fixture
def fake_mmcv(tmp_path, monkeypatch):
    """Lets a package with the given source of `mmcv/_ext.py` be found instead of mmcv."""

    def place(extension: str) -> None:
        (tmp_path / "mmcv").mkdir()
        (tmp_path / "mmcv" / "__init__.py").touch()
        (tmp_path / "mmcv" / "_ext.py").write_text(extension)
        for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)

    return place


def test_compiled_mmcv_is_left_alone(fake_mmcv):
    fake_mmcv("nms = 'compiled'")
    assert not install()
    assert sys.modules["mmcv"]._ext.nms == sys.modules["mmcv._ext"].nms == "compiled"


def test_mmcv_compiled_for_another_pytorch_is_replaced(fake_mmcv):
    fake_mmcv("raise ImportError('undefined symbol: _ZN2at')")
    with pytest.warns(UserWarning, match="is replaced: undefined symbol"):
        assert install()
    assert callable(sys.modules["mmcv"]._ext.nms)


def test_without_mmcv(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(ModuleNotFoundError, match="pip install mmcv-lite"):
        install()
