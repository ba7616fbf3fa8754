"""`--tta` averages over the flips that training shows, and over no others."""

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from mmengine import Config
from mmengine.registry import MODELS

from vision_ssm.engine import load_config, packaged_configs
from vision_ssm.engine.config import config_folder
from vision_ssm.engine.tta import average_views
from vision_ssm.volumes import VolumeSegmentor
from vision_ssm.volumes.flips import trained_flips

VOLUMES = [name for name in packaged_configs() if name.startswith("medical/") or "phantom" in name]
PICTURES = [name for name in packaged_configs() if name not in VOLUMES and "digits" not in name]
BOTH = ["image", "label"]


def _flip(**arguments):
    return dict(type="RandFlipd", keys=BOTH, prob=0.5) | arguments


@pytest.mark.parametrize(
    ("steps", "axes", "views"),
    [
        ([], 3, [()]),
        ([_flip(spatial_axis=0, prob=0.0)], 3, [()]),
        ([_flip(spatial_axis=0)], 3, [(), (0,)]),
        ([_flip(spatial_axis=0), _flip(spatial_axis=-1)], 3, [(), (0,), (2,), (0, 2)]),
        ([_flip(spatial_axis=(0, 1))], 3, [(), (0, 1)]),  # both at once: neither alone
        ([_flip()], 3, [(), (0, 1, 2)]),
        ([dict(type="RandAxisFlipd", keys=BOTH)], 3, [(), (0,), (1,), (2,)]),
        ([_flip(spatial_axis=1, keys=["label"])], 3, [()]),
        ([dict(type="OneOf", transforms=[_flip(spatial_axis=0), _flip(spatial_axis=1)])], 3, [(), (0,), (1,)]),
        ([_flip(spatial_axis=-1), dict(type="SqueezeDimd", keys=BOTH, dim=-1)], 2, [()]),  # across the slice
        ([dict(type="SqueezeDimd", keys=BOTH, dim=-1), _flip(spatial_axis=-1)], 2, [(), (1,)]),
        ([dict(type="Flipd", keys=BOTH, spatial_axis=0)], 3, [()]),
    ],
    ids=str,
)
def test_views_are_those_of_training(steps, axes, views):
    assert trained_flips(dict(transforms=steps), axes) == views
    wrapped = dict(type="RepeatDataset", dataset=dict(type="ConcatDataset", datasets=[dict(transforms=steps)]))
    assert trained_flips(wrapped, axes) == views


def _axes_by_name(cfg):
    """Axes in the window's plane that the training's steps flip, read from the config's text alone."""
    steps = cfg.train_dataloader.dataset.transforms
    assert all(isinstance(step.get("spatial_axis", 0), int) for step in steps if step.type == "RandFlipd")
    return {step.spatial_axis for step in steps if step.type == "RandFlipd"}


@pytest.mark.parametrize("name", VOLUMES)
def test_packaged_configs_of_volumes(name):
    cfg = Config.fromfile(config_folder() / name, import_custom_modules=False)
    assert "tta_options" not in cfg and not cfg.model.inference.get("flips")
    trained = _axes_by_name(cfg)
    average_views(cfg)
    assert len(cfg.model.inference.flips) == 2 ** len(trained)
    assert {axis for view in cfg.model.inference.flips for axis in view} == trained
    assert trained == (set() if "phantom" in name else set(range(len(cfg.model.inference.roi_size))))


def test_flips_that_a_config_names_stay():
    cfg = load_config("demo/phantom_umamba3d")
    cfg.model.inference.flips = (1,)
    average_views(cfg)
    assert tuple(cfg.model.inference.flips) == (1,)
    assert VolumeSegmentor.tta_options(cfg) == {} and MODELS.get("VolumeSegmentor") is VolumeSegmentor


def _flipped(pipeline):
    """Directions of the views of a test."""
    (views,) = (step["transforms"] for step in pipeline if step["type"] == "TestTimeAug")
    flips = [one for group in views for one in group if one["type"] == "RandomFlip"]
    return {one.get("direction", "horizontal") for one in flips if one["prob"] > 0}


@pytest.mark.parametrize("name", PICTURES)
def test_packaged_configs_of_pictures(name):
    cfg = Config.fromfile(config_folder() / name, import_custom_modules=False)
    asked = _flipped(cfg.tta_pipeline)
    average_views(cfg)
    assert _flipped(cfg.test_dataloader.dataset.pipeline) == asked and "horizontal" in asked  # all of them are trained


@pytest.mark.parametrize("name", ["mmseg.RandomFlip", "mmcv.transforms.RandomFlip"])
def test_flips_are_known_by_any_name(name):
    cfg = Config.fromfile(config_folder() / PICTURES[0], import_custom_modules=False)
    asked = _flipped(cfg.tta_pipeline)
    for step in cfg.train_dataloader.dataset.pipeline:
        step.type = name if step.type == "RandomFlip" else step.type
    average_views(cfg)
    assert _flipped(cfg.test_dataloader.dataset.pipeline) == asked


def test_pictures_whose_training_does_not_flip():
    cfg = Config.fromfile(config_folder() / PICTURES[0], import_custom_modules=False)
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline if step.type != "RandomFlip"
    ]
    scales = len(cfg.tta_pipeline[1].transforms[0])
    average_views(cfg)
    (views,) = (step.transforms for step in cfg.test_dataloader.dataset.pipeline if step.type == "TestTimeAug")
    assert not _flipped(cfg.test_dataloader.dataset.pipeline)
    assert len(views[0]) == scales and [one.prob for one in views[1]] == [0.0]
