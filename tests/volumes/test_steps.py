"""Transforms that would spoil label maps or predictions are refused, and networks that do not fit the data."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from torch import nn
from volumes import tiny_volumes
from volumes.tiny_volumes import CLASSES

from vision_ssm.engine import ConfigError, DataError, train
from vision_ssm.engine import test as evaluate
from vision_ssm.volumes import SlidingWindows, VolumeDataset, VolumeSegmentor, build_transforms

BOTH = ["image", "label"]
LOAD = [dict(type="LoadImaged", keys=BOTH), dict(type="EnsureChannelFirstd", keys=BOTH)]
UMAMBA = dict(name="umamba_bot_3d", in_chans=1, num_classes=3, features=(4, 8), kernels=(3, 3), strides=(1, 2))


@pytest.mark.parametrize(
    "step",
    [
        dict(type="Spacingd", pixdim=(0.8, 1.1, 1.7)),
        dict(type="Spacingd", pixdim=(0.8, 1.1, 1.7), mode=["nearest", "bilinear"]),
        dict(type="Spacingd", pixdim=(0.8, 1.1, 1.7), mode=[0, 3]),
        dict(type="Resized", spatial_size=(8, 8, 8)),
        dict(type="Resized", spatial_size=(8, 8, 8), mode=["area", "trilinear"]),
        dict(type="Zoomd", zoom=0.7),
        dict(type="RandZoomd", prob=0.5),
        dict(type="Rotated", angle=0.3),
        dict(type="RandRotated", range_x=0.3, prob=0.5),
        dict(type="Affined", rotate_params=0.2),
        dict(type="RandAffined", prob=0.5),
        dict(type="Rand2DElasticd", spacing=(4, 4), magnitude_range=(1, 2)),
        dict(type="Rand3DElasticd", sigma_range=(5, 7), magnitude_range=(1, 2)),
        dict(type="RandGridDistortiond"),
        dict(type="ResampleToMatchd", key_dst="image"),
        dict(type="RandSimulateLowResolutiond", prob=0.5),
    ],
    ids=lambda step: f"{step['type']} {step.get('mode', '')}",
)
def test_label_maps_are_not_interpolated(step):
    for steps in ([dict(step, keys=BOTH)], [dict(type="OneOf", transforms=[dict(step, keys=BOTH)])]):
        with pytest.raises(ConfigError, match=rf"{step['type']} (interpolates|blurs) the label map"):
            build_transforms([*LOAD, *steps])
    build_transforms([*LOAD, dict(step, keys=["image"]) | ({"mode": "nearest"} if "mode" in step else {})])
    if "Low" not in step["type"]:
        build_transforms([*LOAD, dict(step, keys=BOTH, mode=["bilinear", "nearest"])])


def test_a_transform_of_another_package_is_told():
    with pytest.raises(ConfigError, match=r"transform TorchIOd: .*torchio"):
        build_transforms([*LOAD, dict(type="TorchIOd", keys=["image"], name="NoSuchTransform")])


def test_pads_and_exact_modes_of_label_maps_are_allowed():
    pads = [dict(type="SpatialPadd", keys=BOTH, spatial_size=(8, 8, 8), mode=mode) for mode in ("constant", "reflect")]
    build_transforms([*LOAD, *pads, dict(type="Resized", keys=BOTH, spatial_size=(8, 8, 8), mode="nearest-exact")])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (dict(type="RandGaussianNoised", prob=1.0), "values that are no whole numbers"),
        (dict(type="ScaleIntensityd", minv=0, maxv=6), "ids from 0 to 6, for 3 classes"),
        (dict(type="ShiftIntensityd", offset=-1), "ids from -1 to 1, for 3 classes"),
        (dict(type="AsDiscreted", to_onehot=3), r"the shape \(3, 12, 12, 12\), its image \(3, 12, 12, 12\)"),
        (dict(type="SqueezeDimd"), r"the shape \(12, 12, 12\), its image \(12, 12, 12\)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_spoils_a_label_map_in_another_way_is_found_in_its_sample(step, message, tmp_path):
    root = tiny_volumes.write(tmp_path, train=1, val=1, shape=(12, 12, 12))
    args = tiny_volumes.dataset(root, transforms=[*LOAD, dict(step, keys=BOTH)])
    args.pop("type")
    with pytest.raises(DataError, match=rf"label0000\.nii\.gz: after the transforms it has {message}"):
        VolumeDataset(**args)[0]


@pytest.mark.parametrize(
    "step",
    [
        dict(type="Transposed", indices=(0, 2, 1, 3)),
        dict(type="SqueezeDimd"),
        dict(type="GridDistortiond", num_cells=3, distort_steps=[(1,) * 4] * 3),
        dict(type="Rand3DElasticd", sigma_range=(5, 7), magnitude_range=(1, 2)),
        dict(type="GridSplitd", grid=(2, 2)),
        dict(type="Lambdad", func=torch.clone),
    ],
    ids=lambda step: step["type"],
)
def test_predictions_have_a_way_back(step):
    steps = [dict(type="LoadImaged", keys=["image"]), dict(step, keys=["image"])]
    build_transforms(steps)
    with pytest.raises(ConfigError, match=rf"{step['type']} leaves no trace in the affine"):
        build_transforms(steps, test_mode=True)


@pytest.mark.parametrize(
    "steps",
    [
        [dict(type="RandSpatialCropSamplesd", roi_size=(8, 8, 8), num_samples=2)],
        [dict(type="EnsureTyped", track_meta=False)],
    ],
    ids=["crops", "no affine"],
)
def test_tests_need_one_image_with_its_affine(steps, tmp_path):
    root = tiny_volumes.write(tmp_path, train=1, val=1, shape=(12, 12, 12))
    args = tiny_volumes.dataset(root, "validation")
    args["transforms"] = [*tiny_volumes.loading("image")[:2], *(dict(step, keys=["image"]) for step in steps)]
    args.pop("type")
    with pytest.raises(ConfigError, match="`transforms` of a test: expected steps that keep an image one"):
        VolumeDataset(**args)[0]


STEPS = {
    "Flipd": dict(spatial_axis=(0, 2)),
    "Rotate90d": dict(k=1),
    "Spacingd": dict(pixdim=(1.0, 1.0, 1.0)),
    "Orientationd": dict(axcodes="PIR", labels=None),
    "Resized": dict(spatial_size=(28, 24, 39), mode="nearest-exact"),
    "Zoomd": dict(zoom=2.0, mode="nearest-exact", keep_size=False),
    "BorderPadd": dict(spatial_border=3),
    "Rotated": dict(angle=(0, 0, 1.570796)),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_monai_notes_is_undone(name, tmp_path):
    """The perfect network through each of them, exactly or but for the border that resampling blurs."""
    root = tiny_volumes.write(tmp_path, train=1, val=1, shape=(14, 12, 13))
    args = tiny_volumes.dataset(root, "validation")
    args["transforms"] = [*tiny_volumes.loading("image")[:2], dict(type=name, keys=["image"], **STEPS[name])]
    args.pop("type")
    sample = VolumeDataset(**args)[0]
    model = VolumeSegmentor(dict(type="volumes.tiny_volumes.Threshold"), dict(roi_size=(-1, -1, -1))).eval()
    (found,) = model([sample["image"]], case=[sample["case"]], mode="predict")
    agree = (sample["case"].on_original_grid(found["labels"]) == sample["case"].truth).float().mean()
    assert agree == 1 if name not in ("Spacingd", "Rotated") else agree > 0.97


class Odd(nn.Module):
    """Logits of another size than the window."""

    def __init__(self, how: str, eval_only: bool = False):
        super().__init__()
        self.how, self.eval_only, self.body = how, eval_only, nn.Conv3d(1, 3, 1)

    def forward(self, x):
        x = self.body(x)
        if self.eval_only and self.training:
            return x
        if self.how == "half":
            return nn.functional.avg_pool3d(x, 2)
        return x[..., 1:-1] if self.how == "valid" else nn.functional.pad(x, (1, 1))


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize("how", ["half", "valid", "larger"])
def test_logits_of_another_size_are_refused_before_the_first_step(how, eval_only, tmp_path):
    cfg = tiny_volumes.config(tiny_volumes.write(tmp_path / "data", train=1, val=1))
    cfg.model.network = dict(type="volumes.test_steps.Odd", how=how, eval_only=eval_only)
    with pytest.raises(ConfigError, match=r"an? Odd whose logits of a window of 12x12x12 are \d+x\d+x\d+"):
        train(cfg, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.pth"))
    torch.save(Odd(how).state_dict(), tmp_path / "w.pth")
    cfg.model.network.eval_only = False
    with pytest.raises(ConfigError, match=r"an? Odd whose logits"):
        evaluate(cfg, tmp_path / "w.pth", tmp_path / "run")


@pytest.mark.parametrize("network", [UMAMBA, dict(type="volumes.tiny_volumes.Small")], ids=["named", "own"])
def test_channels_of_files_and_network(network, tmp_path):
    root = tiny_volumes.write(tmp_path / "data", train=1, val=1)
    for path in (root / "imagesTr").iterdir():
        image = tiny_volumes.arrays(0)[0]
        tiny_volumes.save(path, np.stack([image] * 4, -1), tiny_volumes.oblique())
    cfg = tiny_volumes.config(root)
    cfg.model.network = network
    with pytest.raises(
        (ConfigError, DataError), match=r"(in_chans=1, the images have 4 channels|of 4 channels|4 chan)"
    ):
        train(cfg, tmp_path / "run")


@pytest.mark.parametrize("roi", [(-1, -1, 8), (None, None, None), (-1, 13, 40)], ids=str)
def test_whole_sides_are_padded_to_what_the_network_takes(roi):
    model = VolumeSegmentor(dict(UMAMBA, strides=(1, 4)), dict(roi_size=roi if roi[1] != 13 else (-1, 12, 40))).eval()
    (found,) = model([torch.randn(1, 1, 13, 10, 9)], mode="predict")
    assert found["labels"].shape == (13, 10, 9)
    assert all(side % 4 == 0 for side in model.windows.window((13, 10, 9)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(roi_size=96), "`roi_size` is 96"),
        (dict(roi_size=(8, 0, 8)), "sizes of 1 or more, or -1"),
        (dict(roi_size=(8, -2, 8)), "sizes of 1 or more, or -1"),
        (dict(roi_size=(8.0, 8, 8)), "sizes of 1 or more, or -1"),
        (dict(roi_size="888"), "sizes of 1 or more, or -1"),
        (dict(roi_size=(8, 8), overlap=(0.5, 0.5)), "`overlap` is"),
        (dict(roi_size=(8, 8), overlap=1.0), "`overlap` is 1.0"),
        (dict(roi_size=(8, 8), sw_batch_size=0), "`sw_batch_size` is 0"),
        (dict(roi_size=(8, 8), flips=[(0,), (2,)]), "`flips` is .*axes below 2"),
    ],
    ids=str,
)
def test_windows_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindows(**arguments)


def test_windows_of_other_axes_than_the_network():
    with pytest.raises(ConfigError, match=r"`inference.roi_size` is \(8, 8\): expected 3 sizes"):
        VolumeSegmentor(UMAMBA, dict(roi_size=(8, 8)))


def test_views_may_be_named():
    network = nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(1, 1, 6, 6)
    found = SlidingWindows((6, 6), flips=[(), (0, 1)])(image, network)
    expected = [network(image).softmax(1), network(image.flip(2, 3)).softmax(1).flip(2, 3)]
    torch.testing.assert_close(found, sum(expected) / 2)


def test_the_window_of_the_tests_is_tried_without_a_trace():
    """It changes no statistic, no random number and no gradient of the first step."""

    def step(tried):
        torch.manual_seed(0)
        model = VolumeSegmentor(dict(type="volumes.tiny_volumes.Small"), dict(roi_size=(8, 8, 8))).train()
        model._tried = tried
        image, label = torch.randn(2, 1, 8, 8, 8), torch.randint(0, len(CLASSES), (2, 1, 8, 8, 8))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(image, label, mode="loss")["loss"]
        loss.backward()
        return [loss, *model.state_dict().values(), *(one.grad for one in model.parameters() if one.grad is not None)]

    assert model_values(step(False)) == model_values(step(True))


def model_values(tensors):
    """Exact values, to compare."""
    return [one.detach().flatten().tolist() for one in tensors]
