"""Every packaged config of medical volumes: its network builds, it trains a step and tests, on tiny files."""

import json
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from mmengine import Config
from mmengine.optim import build_optim_wrapper
from PIL import Image
from torch._subclasses import FakeTensorMode
from volumes import tiny_volumes

import vision_ssm  # noqa: F401 - registers the networks
from vision_ssm.data.btcv import LABELS as BTCV_LABELS
from vision_ssm.engine import load_config, packaged_configs, train
from vision_ssm.engine import test as evaluate
from vision_ssm.volumes import build_transforms

CONFIGS = [name for name in packaged_configs() if name.startswith("medical/")]
PLANAR = [name for name in CONFIGS if len(load_config(name).model.inference.roi_size) == 2]
BTCV = [name for name in CONFIGS if "btcv13_24-6" in name]
# Published figures: mean Dice (%), and distance.
PUBLISHED = {
    "medical/mamba_unet_acdc.py": (92.81, None),
    "medical/vm_unet_synapse8_18-12.py": (81.08, None),
    "medical/vm_unet_isic.py": (89.71, None),
}


def test_figures_have_a_source():
    found = {}
    for name in CONFIGS:
        if published := load_config(name).get("published"):
            assert published.source.startswith("https://github.com/") and published.note
            found[name] = (published.dice, published.get("hd95"))
    assert found == PUBLISHED


@pytest.mark.parametrize("name", BTCV)
def test_btcv_protocol(name):
    cfg = load_config(name)
    assert len(cfg.classes) == cfg.model.network.num_classes == 14
    assert name.split("/")[1].startswith(cfg.model.network.name)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.transforms}
    assert tuple(steps["Spacingd"].pixdim) == (1.5, 1.5, 2.0) and steps["Orientationd"].axcodes == "RAS"
    window = steps["ScaleIntensityRanged"]
    assert (window.a_min, window.a_max, window.b_min, window.b_max, window.clip) == (-175, 250, 0, 1, True)
    crop = steps["RandCropByPosNegLabeld"]
    assert tuple(crop.spatial_size) == tuple(cfg.model.inference.roi_size) == (96, 96, 96)
    assert (crop.pos, crop.neg, crop.num_samples) == (1, 1, 4)
    whole = {step.type for step in cfg.test_dataloader.dataset.transforms}
    assert not any(step.startswith("Rand") for step in whole) and "CropForegroundd" in whole
    assert cfg.test_evaluator.type == "VolumeMetrics" and not cfg.test_evaluator.get("include_background", False)


def test_synapse_organs():
    """The classes' names, through the ids, are those of BTCV's organs."""
    cfg = load_config("medical/vm_unet_synapse8_18-12.py")
    organs = dict(cfg.train_dataloader.dataset.label_map)
    assert sorted(organs) == list(range(1, 14)) and sorted(filter(None, organs.values())) == list(range(1, 9))
    assert all(BTCV_LABELS[old] == cfg.classes[new] for old, new in organs.items() if new)


@pytest.mark.parametrize("name", CONFIGS)
def test_network_takes_the_crops(name):
    """Without computing: shapes alone."""
    cfg = load_config(name)
    network = dict(cfg.model.network)
    model = timm.create_model(network.pop("name"), **network).train()
    size = tuple(cfg.model.inference.roi_size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = model(torch.empty(2, network["in_chans"], *size))
    outputs = output if isinstance(output, list) else [output]
    assert outputs[0].shape == (2, network["num_classes"], *size)
    assert (len(outputs) > 1) == network.get("deep_supervision", False)
    assert all(a.shape[2] > b.shape[2] for a, b in pairwise(outputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_decayed(name):
    """The published trainings pass all parameters in one group, the states of the scans among them."""
    cfg = load_config(name)
    network = dict(cfg.model.network)
    model = timm.create_model(network.pop("name"), device="meta", **network)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert cfg.optim_wrapper.optimizer.weight_decay > 0
    for key, parameter in model.named_parameters():
        assert found[id(parameter)] == cfg.optim_wrapper.optimizer.weight_decay, key


@pytest.mark.parametrize("name", PLANAR)
def test_labels_lie_where_their_image_lies(name, tmp_path):
    """Resizing moves a disc and its label map alike: their centroids agree in world coordinates."""
    cfg = load_config(name)
    kinds = ("LoadImaged", "EnsureChannelFirstd", "Orientationd", "Resized")
    spatial = [step for step in cfg.train_dataloader.dataset.transforms if step.type in kinds]
    x, y = np.ogrid[:500, :300]
    disc = ((x - 180) ** 2 + (y - 107) ** 2 < 80**2).astype(np.uint8) * 255
    if "isic" in name:
        Image.fromarray(disc.T).save(tmp_path / "disc.png")
    else:
        tiny_volumes.save(tmp_path / "disc.nii.gz", np.stack([disc] * 2, -1), np.diag([-0.7, -0.7, 5.0, 1.0]))
    (path,) = tmp_path.iterdir()
    found = build_transforms(spatial)(dict(image=str(path), label=str(path)))

    def centroid(voxels):
        indices = torch.stack(torch.meshgrid(*map(torch.arange, voxels.shape[1:]), indexing="ij")).double()
        mean = (indices * voxels.as_tensor()).flatten(1).sum(1) / voxels.as_tensor().sum()
        axes = len(mean)
        return voxels.affine[:axes, :axes] @ mean + voxels.affine[:axes, -1]

    distance = (centroid(found["image"]) - centroid(found["label"])).abs()
    assert (distance / found["image"].pixdim).max() < 0.15  # of a voxel


@pytest.mark.parametrize("name", [name for name in PLANAR if "isic" not in name])
def test_slices_are_drawn_alike(name, tmp_path):
    """One slice in twelve has labels, and as many of those that are drawn."""
    cfg = load_config(name)
    image, labels = np.ones((16, 16, 12), np.float32), np.zeros((16, 16, 12), np.uint8)
    labels[4:12, 4:12, 5] = 1
    for key, voxels in (("image", image), ("label", labels)):
        tiny_volumes.save(tmp_path / f"{key}.nii.gz", voxels, np.eye(4))
    transform = build_transforms(_smaller(cfg.train_dataloader.dataset.transforms)).set_random_state(0)
    files = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")}
    drawn = [bool(crop["label"].any()) for _ in range(30) for crop in transform(files)]
    assert len(drawn) >= 150 and 0 < np.mean(drawn) < 0.25


# A step. Sizes are divided, all else is the config's.


def _smaller(node, key: str = ""):
    if isinstance(node, dict):
        for name in node:
            node[name] = _smaller(node[name], name)
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(_smaller(item, key) for item in node)
    return node // 8 if key in ("spatial_size", "roi_size") and node > 1 else node


def _entries(cfg) -> dict[str, list]:
    """A list for the config."""
    suffix = "png" if "isic" in cfg.train_dataloader.dataset.data_list else "nii.gz"
    return {
        split: [dict(image=f"images/{split}{i}.{suffix}", label=f"labels/{split}{i}.{suffix}") for i in range(2)]
        for split in ("training", "validation", "test")
    }


def _write(root, cfg) -> None:
    lists = _entries(cfg)
    ids = list(cfg.train_dataloader.dataset.get("label_map", {})) or range(1, len(cfg.classes))
    for number, entry in enumerate(entry for entries in lists.values() for entry in entries):
        image, labels = tiny_volumes.arrays(number, (20, 20, 12))
        labels = np.where(labels > 0, np.resize(list(ids), 12)[None, None], 0).astype(np.uint8)
        for path, voxels in ((entry["image"], 100 * image), (entry["label"], labels)):
            if path.endswith("png"):
                (root / path).parent.mkdir(exist_ok=True)
                picture = voxels[..., 7].clip(0, 255).astype(np.uint8)
                picture = np.stack([picture] * 3, -1) if "images" in path else picture
                Image.fromarray(picture.swapaxes(0, 1)).save(root / path)
            else:
                tiny_volumes.save(root / path, voxels, tiny_volumes.oblique())
    (root / cfg.train_dataloader.dataset.data_list).write_text(json.dumps(lists))


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_a_step_and_tests(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, "pretty_text", property(str))  # the formatting takes longer than the step
    cfg = load_config(name)
    _write(tmp_path, cfg)
    for part in ("train", "val", "test"):
        loader = cfg[f"{part}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False, batch_size=min(2, loader.batch_size))
        loader.dataset.data_root = str(tmp_path)
        _smaller(loader.dataset.transforms)
    _smaller(cfg.model.inference)
    dims, network = len(cfg.model.inference.roi_size), cfg.model.network
    cfg.model.network = dict(
        type="volumes.tiny_volumes.Plain", dims=dims, in_chans=network.in_chans, num_classes=network.num_classes
    )
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.default_hooks.checkpoint.update(interval=1)
    trained = train(cfg, work_dir=tmp_path / "run")
    assert all(parameter.isfinite().all() for parameter in trained.parameters())
    best = next((tmp_path / "run").glob("best_mean_dice_iter_1.pth"))
    assert torch.load(best, weights_only=True)["meta"]["iter"] == 1
    metrics = evaluate(cfg, best, tmp_path / "run", out=tmp_path / "out", tta=True)
    assert 0 <= metrics["mean_dice"] <= 1 and ("mean_hd95" in metrics) == ("isic" not in name)
    cases = len(_entries(cfg)[cfg.test_dataloader.dataset.split])
    assert len(list((tmp_path / "out").iterdir())) == cases + 2  # and metrics.json and cases.csv
