"""What timm expects of a model beyond its own tests: registration, configs, construction, heads, loading, sizes."""

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
from small_models import SEQUENCE, create, each_model, each_sequence_model, each_staged_model, images, on_meta
from timm.models import get_arch_pretrained_cfgs
from timm.models._hub import save_for_hf

import vision_ssm
from vision_ssm.cards import backbone_facts
from vision_ssm.ops.flops import fvcore_handles

ALL = vision_ssm.models.model_names()
POOLS = {"sequence": ("", "avg", "max", "avgmax", "token", "last"), "staged": ("", "avg", "max", "avgmax", "catavgmax")}
every_model = pytest.mark.parametrize("name", ALL)

IMPORT = """
import json, sys, warnings, timm
before, modules, models = set(sys.modules), timm.list_modules(), timm.list_models()
warnings.simplefilter("error")
import vision_ssm
imported = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps(dict(modules=modules, models=models, imported=imported)))
"""


def first_weight(model: nn.Module) -> torch.Tensor:
    return model.get_parameter(f"{model.pretrained_cfg['first_conv']}.weight")


def filter_of(model: nn.Module):
    return importlib.import_module(type(model).__module__).checkpoint_filter_fn


# Registry and configs


@pytest.fixture(scope="module")
def fresh_import() -> dict[str, list[str]]:
    """timm's own names, and what an import of this package adds to a process that has timm; no warning is allowed."""
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_names_are_free_in_timm(fresh_import: dict[str, list[str]]) -> None:
    modules = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in ALL}
    assert not modules & set(fresh_import["modules"])
    assert not set(ALL) & set(fresh_import["models"])


def test_import_is_light(fresh_import: dict[str, list[str]]) -> None:
    heavy = {"mmcv", "mmengine", "monai", "rich", "matplotlib", "sklearn", "triton", "fvcore", "mamba_ssm"}
    assert not heavy & set(fresh_import["imported"])


@every_model
def test_name_grammar(name: str) -> None:
    assert re.fullmatch(r"[a-z]\w*_(nano|micro|tiny|small|base|large|huge|test)(_[a-z0-9]+)*", name)
    assert name == name.lower()
    assert timm.models.model_entrypoint(name).__name__ == name


@every_model
def test_configs_are_complete(name: str) -> None:
    configs = get_arch_pretrained_cfgs(name)
    assert configs
    parameters = dict(on_meta(name).named_parameters())
    for key, config in configs.items():
        assert re.fullmatch(rf"{name}\.[a-z0-9_]+", key)
        for field in ("license", "origin_url", "paper_ids", "mean", "std", "crop_pct", "interpolation", "input_size"):
            assert getattr(config, field), f"{key} has no {field}"
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", config.paper_ids)
        assert f"{config.first_conv}.weight" in parameters
        assert f"{config.classifier}.weight" in parameters
        assert len(config.mean) == len(config.std) == config.input_size[0]
        assert not config.hf_hub_id or re.fullmatch(r"(?!timm/)[\w.-]+/[\w.-]+", config.hf_hub_id)


@pytest.mark.parametrize("name", list(backbone_facts()))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == backbone_facts()[name]["params"]


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8", "vanilla_vmamba_tiny"])
def test_flops_are_the_published_ones(name: str) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    count = fvcore.FlopCountAnalysis(create(name), images(1, 224, 224))
    count = count.set_op_handle(**fvcore_handles()).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert count.total() / 1e9 == pytest.approx(backbone_facts()[name]["gflops"], rel=0.01)


# Construction


@each_model
def test_unknown_argument_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model(name, not_an_argument=1)


@each_model
def test_same_seed_same_weights(name: str) -> None:
    first, second, other = (create(name, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@each_model
def test_initialisation_after_to_empty(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.float64, num_classes=5).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(math.nan)  # what the initialisation misses stays so
    model.init_weights()
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.isfinite(tensor).all(), key
    # Not just finite, but distributed as in a model that was made the usual way.
    for key, expected in create(name, dtype=torch.float64, num_classes=5).named_parameters():
        found, spread = model.get_parameter(key), expected.std(correction=0).item()
        assert abs(found.mean() - expected.mean()) <= 6 * spread * expected.numel() ** -0.5, key
        if expected.numel() > 200 or not spread:
            assert found.std(correction=0).item() == pytest.approx(spread, rel=0.25), key
    assert torch.isfinite(model(images().double())).all()


@each_model
@pytest.mark.parametrize("channels", [1, 4])
def test_input_channels(name: str, channels: int) -> None:
    model = create(name, in_chans=channels)
    assert model.in_chans == first_weight(model).shape[1] == channels
    assert torch.isfinite(model(images(channels=channels))).all()


@each_model
@pytest.mark.parametrize("custom_load", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_pretrained_weights_are_adapted(name: str, channels: int, custom_load: bool, tmp_path: Path) -> None:
    source = create(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"), custom_load=custom_load)
    for classes in (0, 5):
        model = create(name, 1, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=channels, num_classes=classes)
        weight = first_weight(source)
        if channels == 1:
            expected = weight.sum(1, keepdim=True)
        else:
            expected = weight.repeat(1, 2, 1, 1)[:, :channels] * (3 / channels)
        torch.testing.assert_close(first_weight(model), expected)
        changed = {f"{model.pretrained_cfg[part]}.weight" for part in ("first_conv", "classifier")}
        changed.add(f"{model.pretrained_cfg['classifier']}.bias")
        for key, value in model.state_dict().items():
            assert key in changed or torch.equal(value, source.state_dict()[key]), key


# Sizes


@pytest.mark.parametrize("size", [(64, 96), (65, 79), (96, 50)])
@each_model
def test_any_size(name: str, size: tuple[int, int]) -> None:
    model = create(name)
    if model.pretrained_cfg["fixed_input_size"]:
        with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} pixels.*set_input_size.*dynamic_img_size=True"):
            model(images(1, *size))
        model = create(name, dynamic_img_size=True)
    assert torch.isfinite(model(images(1, *size))).all()
    assert all(torch.isfinite(tap).all() for tap in model.forward_intermediates(images(1, *size))[1])


@each_sequence_model
def test_set_input_size(name: str) -> None:
    model, x = create(name), images(1, 48, 80)
    resized = create(name, 1, img_size=(48, 80))
    resized.load_state_dict(filter_of(model)(model.state_dict(), resized))
    if not model.rope:  # the rotary tables of a dynamic model are resized, those of a model's own size are computed
        torch.testing.assert_close(resized(x), create(name, dynamic_img_size=True)(x))
    for frozen in (True, False):
        model = create(name).requires_grad_(not frozen)
        model.set_input_size(img_size=(48, 80))
        torch.testing.assert_close(model(x), resized(x))
        assert all(p.requires_grad != frozen for p in model.parameters())
    with pytest.raises(ValueError, match="img_size"):
        create(name, img_size=0)


@each_model
def test_images_of_a_batch_are_independent(name: str) -> None:
    model, x = create(name), images(3)
    single = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(model(x), single, rtol=1e-4, atol=1e-5)


# Heads


def _pools(name: str, model: nn.Module) -> list[str]:
    pools = POOLS["sequence" if name in SEQUENCE else "staged"]
    return [pool for pool in pools if pool != "token" or model.num_prefix_tokens]


@each_model
def test_pooling_and_reset(name: str) -> None:
    model, x = create(name), images()
    features = model.forward_features(x)
    for pool in _pools(name, model):
        model.reset_classifier(7, pool)
        model.reset_classifier(5)  # keeps the pooling
        torch.testing.assert_close(
            model.forward_head(features, pre_logits=True),
            create(name, num_classes=0, global_pool=pool).forward_head(features),
        )
        if pool:
            assert model(x).shape == (2, 5)
            assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
            assert model.get_classifier().in_features == model.head_hidden_size
    assert model.num_classes == 5
    model.reset_classifier(0)
    assert model.num_classes == 0 and isinstance(model.get_classifier(), nn.Identity)


@each_model
def test_unknown_pooling_is_refused(name: str) -> None:
    model = create(name)
    unknown = {"", "avg", "max", "avgmax", "catavgmax", "token", "last", "map", "gem"} - set(_pools(name, model))
    for pool in sorted(unknown):
        with pytest.raises((AssertionError, ValueError), match=pool):
            create(name, global_pool=pool)
        with pytest.raises((AssertionError, ValueError), match=pool):
            model.reset_classifier(7, pool)


@each_model
def test_dropout_before_the_classifier(name: str) -> None:
    model = create(name, drop_rate=0.5)
    features = model.forward_features(images())
    for _ in range(2):
        assert torch.equal(model.forward_head(features), model.forward_head(features))
        model.train()
        assert not torch.equal(model.forward_head(features), model.forward_head(features))
        model.reset_classifier(5)
        assert not torch.equal(model.forward_head(features), model.forward_head(features))
        model.eval()


@each_model
def test_stochastic_depth(name: str) -> None:
    model = create(name, drop_path_rate=0.9).train()
    assert not torch.equal(model(images(8)), model(images(8)))
    torch.testing.assert_close(model.eval()(images()), create(name)(images()))


# Saving and loading


@each_model
def test_hub_round_trip(name: str, tmp_path: Path) -> None:
    source, size = create(name, in_chans=4, num_classes=11), (64, 64)
    if hasattr(source, "set_input_size"):
        size = (48, 80)
        source.set_input_size(img_size=size)
    source.reset_classifier(7)
    save_for_hf(source, tmp_path, safe_serialization=True)
    restored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (restored.in_chans, restored.num_classes) == (4, 7)
    assert all(torch.equal(value, restored.state_dict()[key]) for key, value in source.state_dict().items())
    assert torch.equal(restored(images(2, *size, channels=4)), source(images(2, *size, channels=4)))


@each_model
def test_headless_checkpoint(name: str) -> None:
    model, reloaded = create(name, num_classes=0), create(name, 1, num_classes=0)
    stored = dict(sorted(model.state_dict().items()))  # as safetensors does
    reloaded.load_state_dict(filter_of(model)(stored, reloaded))
    assert torch.equal(reloaded(images()), model(images()))


@each_model
@pytest.mark.parametrize("envelope", ["", "model", "state_dict"])
def test_filter_keeps_own_checkpoints(name: str, envelope: str) -> None:
    model = create(name)
    own = model.state_dict()
    once = filter_of(model)({envelope: own} if envelope else own, model)
    for filtered in (once, filter_of(model)(once, model)):
        assert list(filtered) == list(own)
        assert all(torch.equal(filtered[key], value) for key, value in own.items())


@each_staged_model
def test_map_is_channels_last_in_memory(name: str) -> None:
    """Stages hand NCHW maps on without copying them."""
    for tap in create(name).forward_intermediates(images())[1]:
        assert tap.is_contiguous(memory_format=torch.channels_last)
