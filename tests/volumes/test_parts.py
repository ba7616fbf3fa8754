"""Loss, windows and metrics against explicit formulas and cases by hand."""

import itertools
import math
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from torch import nn
from volumes.tiny_volumes import Small, Threshold

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import ConfigError
from vision_ssm.volumes import Case, DeepSupervision, SlidingWindows, VolumeMetrics, VolumeSegmentor
from vision_ssm.volumes.metrics import dice, hausdorff95


def _dice_ce(logits, label, batch, weight=None):
    """Dice plus cross-entropy of softmax outputs, in float64; MONAI adds 1e-5 to numerator and denominator."""
    logits, classes = logits.double(), logits.shape[1]
    p, y = logits.softmax(1), F.one_hot(label[:, 0], classes).movedim(-1, 1).double()
    axes = (0, 2, 3, 4) if batch else (2, 3, 4)
    both, total = (p * y).sum(axes), p.sum(axes) + y.sum(axes)
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    overlap = 1 - (2 * both + 1e-5) / (total + 1e-5)
    if weight is not None:
        overlap = overlap * weight
    return overlap.mean() + F.cross_entropy(logits, label[:, 0], weight)


def _outputs(number):
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 3, (2, 1, 8, 8, 4), generator=generator)
    return [torch.randn(2, 3, 8 >> i, 8 >> i, 4 >> i, generator=generator) for i in range(number)], label


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("coarsest", [False, True])
def test_deep_supervision_is_the_weighted_sum(batch, coarsest):
    outputs, label = _outputs(3)
    weights = [4 / 7, 2 / 7, 1 / 7] if coarsest else [2 / 3, 1 / 3, 0]
    # nearest neighbours: the label at the centre of what a coarse voxel covers
    labels = [label, label[:, :, 1::2, 1::2, 1::2], label[:, :, 2::4, 2::4, 2::4]]
    expected = sum(w * _dice_ce(o, y, batch) for w, o, y in zip(weights, outputs, labels, strict=True) if w)
    leaves = [output.requires_grad_() for output in outputs]
    loss = DeepSupervision(coarsest=coarsest, batch=batch)(outputs, label)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert all(leaf.grad is not None for leaf in leaves)
    assert coarsest == bool(outputs[-1].grad.any())
    assert coarsest or DeepSupervision(batch=batch)(outputs, label) == loss


def test_single_output_with_class_weights():
    (output,), label = _outputs(1)
    loss = DeepSupervision(weight=[0.2, 1.0, 3.0])(output, label)
    torch.testing.assert_close(loss.double(), _dice_ce(output, label, False, [0.2, 1.0, 3.0]), rtol=1e-5, atol=0)


def test_loss_of_half_precision_outputs_is_of_float32():
    (output,), label = _outputs(1)
    half = output.bfloat16()
    assert DeepSupervision()(half, label) == DeepSupervision()(half.float(), label)


@pytest.mark.parametrize(
    ("size", "roi"),
    [
        ((17, 13, 11), (8, 8, 8)),
        ((5, 13, 6), (8, 8, 8)),
        ((9, 10), (4, 6)),
        ((9, 10, 3), (4, 6)),
        ((9, 8, 7), (-1, 4, -1)),
    ],
)
@pytest.mark.parametrize("flipped", [False, True])
def test_pointwise_network_gives_what_it_gives_without_windows(size, roi, flipped):
    image, network = torch.rand(1, 1, *size) * 2, Threshold()
    windows = SlidingWindows(roi, overlap=0.5, sw_batch_size=3, flips=range(len(roi)) if flipped else ())
    with torch.no_grad():
        torch.testing.assert_close(windows(image, network), network(image).softmax(1))


def test_first_output_counts_and_logits_of_half_precision_become_float32():
    class Several(Threshold):
        def forward(self, x):
            full = super().forward(x)
            return [full.bfloat16(), -full[..., ::2, ::2, ::2]]

    image = torch.rand(1, 1, 8, 8, 8)
    probabilities = SlidingWindows((4, 4, 4))(image, Several())
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, Threshold()(image).bfloat16().float().softmax(1))


def test_flips_are_averaged():
    torch.manual_seed(1)
    image, network = torch.randn(1, 1, 4, 4, 4), nn.Conv3d(1, 2, 3, padding=1)
    with torch.no_grad():
        result = SlidingWindows((4, 4, 4), flips=(0, 2))(image, network)
        expected = [network(image.flip(axes)).softmax(1).flip(axes) for axes in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(result, torch.stack(expected).mean(0))


@pytest.mark.parametrize("size", [(8, 8, 8), (32, 32, 16)])
def test_outputs_of_windows_do_not_pile_up(size):
    """Whatever the number of windows, at most two batches of outputs are alive while the network runs."""
    alive, most = set(), 0

    class Watched(Threshold):
        def forward(self, x):
            nonlocal most
            logits = super().forward(x)
            alive.add(id(logits))
            weakref.finalize(logits, alive.discard, id(logits))
            most = max(most, len(alive))
            return logits

    with torch.no_grad():
        SlidingWindows((8, 8, 8), overlap=0.5, sw_batch_size=2)(torch.rand(1, 1, *size), Watched())
    assert most <= 2


@pytest.mark.parametrize(
    "arguments", [dict(roi_size=(4,)), dict(roi_size=(4, 4), overlap=1.0), dict(roi_size=(4, 4), flips=(2,))]
)
def test_bad_windows(arguments):
    with pytest.raises(ValueError, match="expected"):
        SlidingWindows(**arguments)


def test_window_of_three_axes_and_a_picture():
    with pytest.raises(ValueError, match="3 axes do not fit an image of 2"):
        SlidingWindows((4, 4, 4))(torch.rand(1, 1, 8, 8), Threshold())


# Metrics


def _mask(shape, *boxes):
    mask = torch.zeros(shape, dtype=torch.bool)
    for box in boxes:
        mask[tuple(slice(*side) for side in box)] = True
    return mask


def _explicit_hd95(one, other, spacing):
    """Every pair of surface voxels (those with a face neighbour outside)."""

    def surface(mask):
        padded = F.pad(mask, [1, 1] * 3)
        inside = torch.stack([padded.roll(step, axis) for axis, step in itertools.product(range(3), (-1, 1))]).all(0)
        return (padded & ~inside).nonzero().double() * torch.tensor(spacing, dtype=torch.float64)

    distances = torch.cdist(surface(one), surface(other))
    return max(torch.quantile(distances.min(axis).values, 0.95).item() for axis in (0, 1))


def test_dice_and_distance_by_hand():
    shape, spacing = (10, 9, 8), (1.0, 2.0, 0.5)
    one = _mask(shape, ((1, 5), (1, 5), (1, 5)))
    other = _mask(shape, ((3, 7), (1, 5), (1, 5)))
    assert dice(one, other) == 2 * 32 / (64 + 64)
    assert hausdorff95(one, other, spacing) == pytest.approx(2.0)  # two voxels of 1 mm
    assert hausdorff95(one.roll(1, 1), one, spacing) == pytest.approx(2.0)  # one voxel of 2 mm
    assert (dice(one, one), hausdorff95(one, one, spacing)) == (1.0, 0.0)


def test_distance_of_random_shapes():
    generator = torch.Generator().manual_seed(0)
    spacing = (0.8, 1.5, 3.0)
    for _ in range(5):
        one, other = (torch.rand(7, 6, 8, generator=generator) < 0.1 for _ in range(2))
        expected = _explicit_hd95(one, other, spacing)
        assert hausdorff95(one, other, spacing) == pytest.approx(expected, rel=1e-5)


def test_absent_organs():
    shape, spacing = (4, 5, 6), (1.0, 2.0, 3.0)
    some, none = _mask(shape, ((0, 2), (0, 2), (0, 2))), _mask(shape)
    assert math.isnan(dice(some, none)) and math.isnan(hausdorff95(some, none, spacing))
    assert math.isnan(dice(none, none)) and math.isnan(hausdorff95(none, none, spacing))
    assert dice(none, some) == 0
    assert hausdorff95(none, some, spacing) == pytest.approx(math.sqrt(4**2 + 10**2 + 18**2))  # the diagonal


def _sample(prediction, truth, image="a.nii.gz"):
    eye = torch.eye(4, dtype=torch.float64)
    return dict(labels=prediction, case=Case(image, eye, eye, tuple(prediction.shape), truth))


def test_means_over_volumes_and_organs():
    shape = (6, 6, 6)
    liver = _mask(shape, ((0, 2), (0, 2), (0, 2))).byte()
    spleen = _mask(shape, ((3, 5), (3, 5), (3, 5))).byte() * 2
    metric = VolumeMetrics(("background", "liver", "spleen", "nothing"))
    metric.process({}, [_sample(liver + spleen, liver + spleen)])
    metric.process({}, [_sample(spleen, liver)])  # the liver missed, a spleen that is not there
    result = metric.evaluate(2)
    assert result["dice/liver"] == 0.5 and result["dice/spleen"] == 1.0 and result["mean_dice"] == 0.75
    diagonal = math.sqrt(3 * 6**2)
    assert result["hd95/liver"] == pytest.approx(diagonal / 2) and result["hd95/spleen"] == 0
    assert result["mean_hd95"] == pytest.approx(diagonal / 4)
    assert not any("nothing" in name or "background" in name for name in result)


def test_background_and_distances_are_options():
    truth = _mask((4, 4, 4), ((0, 2), (0, 4), (0, 4))).byte()
    metric = VolumeMetrics(("background", "liver"), include_background=True, hd95=False, prefix="test")
    metric.process({}, [_sample(truth, truth)])
    names = {"test/dice/background", "test/dice/liver", "test/mean_dice"}
    assert metric.evaluate(1) == dict.fromkeys(names, 1.0)
    with pytest.raises(ConfigError, match="twice"):
        VolumeMetrics(("background", "liver", "liver"))


def test_the_table_shows_all_organs():
    metric = VolumeMetrics(("background", "liver", "left kidney"))
    table = metric._table({"dice/liver": 0.91234, "hd95/liver": 3.456, "mean_dice": 0.91234, "mean_hd95": 3.456})
    head, liver, kidney, mean = table.splitlines()
    assert liver.split() == ["liver", "91.23", "3.46"] and mean.split() == ["mean", "91.23", "3.46"]
    assert (
        kidney.split() == ["left", "kidney", "–", "–"] and len({len(row) for row in (head, liver, kidney, mean)}) == 1
    )


@pytest.mark.parametrize(
    ("image", "shape", "unit"),
    [("a.nii.gz", (6, 5, 4), "mm"), ("a.nii.gz", (6, 5), "mm"), ("a.png", (6, 5), "pixels")],
)
def test_distances_of_pictures_are_pixels(image, shape, unit):
    metric, truth = VolumeMetrics(("background", "lesion")), torch.zeros(shape, dtype=torch.uint8)
    truth[2:4, 1:3] = 1
    metric.process({}, [_sample(truth.roll(1, 0), truth, image)])
    head, lesion, mean = metric._table(metric.compute_metrics(metric.results)).splitlines()
    assert head.endswith(f"HD95 ({unit})") and lesion.split()[-1] == "1.00"
    assert len(head) == len(lesion) == len(mean)


def test_classes_are_those_of_the_data_set():
    """One organ under another's name is what nobody would see in a table."""
    metric = VolumeMetrics()
    with pytest.raises(ConfigError, match="no `classes`"):
        metric.check_samples([])
    metric.dataset_meta = dict(classes=("background", "liver", "tumour"))
    metric.check_samples([])
    assert metric.organs == {1: "liver", 2: "tumour"}
    for other in (("background", "tumour", "liver"), ("background", "tumour")):
        metric = VolumeMetrics(other)
        metric.dataset_meta = dict(classes=("background", "liver", "tumour"))
        with pytest.raises(ConfigError, match="the data set background, liver, tumour: leave them out"):
            metric.check_samples([])


# The model


@pytest.mark.parametrize("network", [
    dict(type="monai.networks.nets.UNet", spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,)),
    dict(type="volumes.tiny_volumes.Small"),
])  # fmt: skip
def test_networks_by_name_train_and_predict(network):
    model = VolumeSegmentor(network, dict(roi_size=(8, 8, 8)))
    image, label = torch.rand(2, 1, 8, 8, 8), torch.randint(0, 3, (2, 1, 8, 8, 8))
    model.train()(image=[image, image], label=[label, label], mode="loss")["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    (result,) = model.eval()(image=[image[:1].repeat(1, 1, 2, 1, 1)], mode="predict")
    assert result["labels"].shape == (16, 8, 8) and result["labels"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("network", "message"),
    [(dict(name="vmamba_tinny"), "did you mean .*vmamba_tiny"), (dict(in_chans=1), "`name` of a model in timm")],
)
def test_unknown_networks(network, message):
    with pytest.raises(ConfigError, match=message):
        VolumeSegmentor(network, dict(roi_size=(8, 8, 8)))


class OneClass(nn.Module):
    """The logit of a lesion, as many times as asked."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        self.scale = nn.Parameter(torch.full((outputs, 1, 1, 1), 3.0))

    def forward(self, x):
        return self.scale * (x - 0.4)


def test_a_network_of_one_class_is_a_sigmoid():
    model = VolumeSegmentor(dict(type=OneClass), dict(roi_size=(8, 8, 8)))
    model.expect_classes(("background", "lesion"))
    image = torch.rand(1, 1, 8, 8, 8)
    truth = (image > 0.5).long()
    p = (3 * (image.double() - 0.4)).sigmoid()
    p = torch.cat([1 - p, p], 1)
    found = model(image, truth, mode="loss")["loss"]
    torch.testing.assert_close(found.double(), _dice_ce(p.log(), truth, False), rtol=1e-5, atol=0)
    (result,) = model(image, mode="predict")
    assert torch.equal(result["labels"].bool(), image[0, 0] > 0.4)


@pytest.mark.parametrize("outputs", [2, 7])
def test_outputs_are_those_of_the_classes(outputs):
    """Known when a network says so, and otherwise when it runs."""
    model = VolumeSegmentor(dict(type=OneClass, outputs=outputs), dict(roi_size=(8, 8, 8)))
    model.expect_classes(("background", "ball", "box"))
    image = torch.rand(1, 1, 8, 8, 8)
    message = f"OneClass of {outputs} classes, the data has 3: background, ball, box"
    for arguments in (dict(mode="predict"), dict(mode="loss", label=torch.zeros(1, 1, 8, 8, 8))):
        with pytest.raises(ConfigError, match=message):
            model(image, **arguments)
    model.network.num_classes = outputs
    with pytest.raises(ConfigError, match=message):
        model.expect_classes(("background", "ball", "box"))


@pytest.mark.parametrize(
    ("name", "roi", "message"),
    [
        ("umamba_v1_3d_test", (30, 32, 16), "expected multiples of"),
        ("umamba_3d_test", (16, 16, 16), r"a map of \(4, 4, 4\)"),
    ],
)
def test_windows_that_the_network_does_not_take(name, roi, message):
    with pytest.raises(ConfigError, match=rf"`inference\.roi_size` is .*{message}"):
        VolumeSegmentor(dict(name=name, num_classes=3), dict(roi_size=roi))


def test_windows_of_one_voxel_at_the_deepest_map_fit():
    """Batch norms would refuse them in training; windows are for tests."""
    assert VolumeSegmentor(dict(name="nnmamba_seg_test"), dict(roi_size=(16, 16, 16))).windows.roi_size == (16,) * 3


def test_stacked_levels():
    """As MONAI's DynUNet returns them in training."""

    class Stacked(nn.Module):
        num_classes = 2

        def forward(self, x):
            return torch.stack([torch.cat([x, -x], 1), torch.cat([2 * x, -x], 1)], 1)

    image, label = torch.randn(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 1, 8, 8, 8))
    model = VolumeSegmentor(dict(type=Stacked), dict(roi_size=(8, 8, 8)), dict(coarsest=True))
    expected = DeepSupervision(coarsest=True)([torch.cat([image, -image], 1), torch.cat([2 * image, -image], 1)], label)
    torch.testing.assert_close(model(image, label, mode="loss")["loss"], expected)


def test_probabilities_are_no_logits():
    with pytest.raises(ConfigError, match=r"`network\.activation` is set: expected logits"):
        VolumeSegmentor(dict(name="vm_unet_test", activation=True), dict(roi_size=(64, 64)))


def test_gradient_checkpointing_by_config():
    network = dict(name="umamba_3d_test", in_chans=1, num_classes=3, with_cp=True)
    assert VolumeSegmentor(network, dict(roi_size=(12, 12, 12))).network.decoder.grad_checkpointing
    with pytest.raises(ConfigError, match="`with_cp`: Identity has no gradient checkpointing"):
        VolumeSegmentor(dict(type="torch.nn.Identity", with_cp=True), dict(roi_size=(8, 8, 8)))


def test_channels_last_is_the_same_network():
    network = dict(name="umamba_3d_test", in_chans=1, num_classes=3)
    torch.manual_seed(0)
    plain = VolumeSegmentor(network, dict(roi_size=(12, 12, 12)))
    other = VolumeSegmentor(network, dict(roi_size=(12, 12, 12)), channels_last=True)
    other.load_state_dict(plain.state_dict())
    weight = other.network.stages[1][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 1, 12, 12, 12)
    torch.testing.assert_close(other(x), plain(x), rtol=1e-3, atol=1e-3)


def test_weights_of_the_network_alone(tmp_path):
    """As a start, and as a checkpoint of the whole model: a file of this package, or a published one."""
    network = dict(name="umamba_3d_test", in_chans=1, num_classes=3)
    source = timm.create_model("umamba_3d_test", in_chans=1, num_classes=3)
    path = tmp_path / "network.pth"
    torch.save(source.state_dict(), path)
    started = VolumeSegmentor(network, dict(roi_size=(12, 12, 12)), checkpoint=str(path))
    assert not all(torch.equal(a, b) for a, b in zip(started.network.parameters(), source.parameters(), strict=True))
    started.init_weights()
    other = VolumeSegmentor(network, dict(roi_size=(12, 12, 12)), loss=dict(weight=[1.0, 2.0, 3.0]))
    other.load_state_dict(other.convert_state_dict(dict(network_weights=source.state_dict())))
    for model in (started, other):
        assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), source.parameters(), strict=True))
    own = other.state_dict()
    assert other.convert_state_dict(own) == own
    torch.save({"stem.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"network\.pth"):
        started.init_weights()


def test_nothing_to_measure_is_said(monkeypatch):
    lines = []
    monkeypatch.setattr("vision_ssm.volumes.metrics.print_log", lambda line, logger: lines.append(line))
    assert VolumeMetrics(("background", "liver")).compute_metrics([{}, {}]) == {}
    assert lines == ["no volume has an organ in its label map: there is nothing to measure"]


def test_weights_of_a_network_of_ones_own(tmp_path):
    network, source = dict(type="volumes.tiny_volumes.Small"), Small()
    path = tmp_path / "own.pth"
    torch.save(dict(state_dict=source.state_dict()), path)
    started = VolumeSegmentor(network, dict(roi_size=(8, 8, 8)), checkpoint=str(path))
    started.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(started.network.state_dict()[name], value)
    torch.save({"other.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"own\.pth does not fit Small: missing: .*unexpected: other\.weight"):
        started.init_weights()
