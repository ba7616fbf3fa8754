"""Configs by path and by name, and the errors of those that cannot be used."""

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
from engine.tiny import config

from vision_ssm.engine import ConfigError, load_config, packaged_configs, train

MODEL = "model = dict(type='TinyModel')\n"


def a_file(tmp_path, text, name="run.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_packaged_config_loads():
    names = packaged_configs()
    assert "demo/digits_segmentation.py" in names and not any(name.startswith("_") for name in names)
    for name in names:
        assert load_config(name).model.type, name


@pytest.mark.parametrize("name", ["demo/digits_segmentation", "configs/demo/digits_segmentation.py"])
def test_names_with_and_without_folder_and_suffix(name):
    assert load_config(name).to_dict() == load_config("demo/digits_segmentation.py").to_dict()


def test_missing_config_has_close_names():
    with pytest.raises(FileNotFoundError, match=r"no config demo/digit_segmentation.*demo/digits_segmentation\.py"):
        load_config("demo/digit_segmentation")
    with pytest.raises(FileNotFoundError, match=r"no config nothing_like_it\.py$"):
        load_config("nothing_like_it.py")


@pytest.mark.parametrize("key", ["optim_wraper", "train_dataloder", "param_schedulers", "load_form", "randomnes"])
def test_misspelt_key_is_named(key, tmp_path):
    path = a_file(tmp_path, MODEL + f"{key} = 1\n")
    with pytest.raises(ConfigError, match=rf"run\.py: unknown key '{key}': did you mean "):
        load_config(path)


def test_variables_of_a_config_are_no_keys(tmp_path):
    text = MODEL + "num_classes = 3\ndata_root = 'x'\n_models = 1\ncrop_size = 4\n"
    assert load_config(a_file(tmp_path, text)).crop_size == 4


def test_options_change_a_config_or_are_refused(tmp_path):
    path = a_file(tmp_path, MODEL + "crop_size = 4\n")
    cfg = load_config(path, {"crop_size": 5, "model.width": 3, "randomness.seed": 1, "resume": True})
    assert (cfg.crop_size, cfg.model.width, cfg.randomness.seed, cfg.resume) == (5, 3, 1, True)
    with pytest.raises(ConfigError, match=r"--cfg-options: unknown key 'modle.width': did you mean 'model'\?"):
        load_config(path, {"modle.width": 3})
    with pytest.raises(ConfigError, match=r"--cfg-options: unknown key 'colour'$"):
        load_config(path, {"colour": 3})
    with pytest.raises(ConfigError, match=r"--cfg-options .*crop_size"):
        load_config(path, {"crop_size.0": 3})


@pytest.mark.parametrize(
    "text, message",
    [
        ("model = dict(type=\n", "cannot be read"),
        ("_base_ = 'absent.py'\n", r"cannot be read: .*absent\.py"),
        ("model = dict(type=undefined_name)\n", "cannot be read: NameError.*undefined_name"),
        ("work_dir = 'x'\n", "has no `model`"),
    ],
)
def test_unreadable_config_is_named(text, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"broken\.py {message}"):
        load_config(a_file(tmp_path, text, "broken.py"))


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"model.type": "TinyModell"}, ["TinyModell"]),
        ({"model.widht": 4}, ["TinyModel", "widht"]),
        ({"train_dataloader.dataset.typ": 4}, ["TinyData", "typ"]),
        ({"train_dataloader.dataset.type": "NoData"}, ["NoData"]),
        ({"train_dataloader.batchsize": 4}, ["batchsize"]),
        ({"val_dataloader.batchsize": 4}, ["batchsize"]),
        ({"train_dataloader.sampler.shufle": True}, ["InfiniteSampler", "shufle"]),
        ({"optim_wrapper.optimizer.learning_rate": 1}, ["AdamW", "learning_rate"]),
        ({"optim_wrapper.optimizer.type": "Adamm"}, ["Adamm"]),
        ({"default_hooks.checkpoint.intervall": 5}, ["CheckpointHook", "intervall"]),
        ({"train_cfg.max_iter": 5}, ["max_iter"]),
        ({"param_scheduler.0.strat_factor": 5}, ["Linear", "strat_factor"]),
        ({"val_evaluator.type": "NoMetric"}, ["NoMetric"]),
    ],
    ids=lambda value: next(iter(value)),
)
def test_unknown_types_and_arguments_are_named(changes, names, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(config(**changes), tmp_path)
    for name in names:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value).strip() or len(str(caught.value)) < 600


@pytest.mark.parametrize("part", ["train_dataloader", "train_cfg", "optim_wrapper"])
def test_what_training_needs(part, tmp_path):
    cfg = config()
    cfg.pop(part)
    with pytest.raises(ConfigError, match=f"has no `{part}`: it cannot be trained"):
        train(cfg, tmp_path)


def test_amp_needs_a_plain_optimiser_wrapper(tmp_path):
    cfg = config(steps=12)
    cfg.optim_wrapper.type = "BFloat16OptimWrapper"
    with pytest.raises(ConfigError, match="is a BFloat16OptimWrapper already"):
        train(cfg, tmp_path, amp="bf16")
    assert train(config(steps=12), tmp_path, amp="bf16").head.weight.isfinite().all()


def test_the_callers_config_stays_as_it_is(tmp_path):
    cfg = config(steps=12)
    before = cfg.to_dict()
    train(cfg, tmp_path, options={"train_cfg.max_iters": 10})
    assert cfg.to_dict() == before
