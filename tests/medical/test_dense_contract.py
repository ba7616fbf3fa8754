"""What every network for dense prediction owes its users: cards, building, sizes, training."""

import copy
import inspect
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from small_networks import FRAMES, SIZED, SMALL, create, each_network, error, logits, on_meta, step, volumes

import vision_ssm
from vision_ssm import medical
from vision_ssm.cards import network_facts

ALL = medical.model_names()
PUBLISHED = [name for name in ALL if not name.endswith("_test")]


def arguments(name: str) -> set[str]:
    return set(inspect.signature(type(on_meta(name))).parameters)


SUPERVISED = [name for name in SMALL if "deep_supervision" in arguments(name)]
CLASSIFIERS = ("nnmamba_cls_test",)


def expected_shape(name: str, x: torch.Tensor, classes: int) -> tuple[int, ...]:
    if name in CLASSIFIERS:
        return len(x), classes
    if name in FRAMES:
        return *x.shape[:2], classes, *x.shape[3:]
    return len(x), classes, *x.shape[2:]


# Registry, configs, cards


def test_every_network_has_a_card_and_facts() -> None:
    assert set(network_facts()) == set(PUBLISHED)
    root = Path(vision_ssm.__file__).parents[1]
    for name in PUBLISHED:
        assert (root / "model_cards" / f"{name}.md").is_file()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_card(name: str) -> None:
    facts = network_facts()[name]
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == facts["params"]


@pytest.mark.parametrize("name", ALL)
def test_config(name: str) -> None:
    model = on_meta(name)
    config, parameters = model.pretrained_cfg, dict(model.named_parameters())
    assert config["license"] and config["origin_url"] and config["paper_ids"].startswith("arXiv:")
    assert parameters[f"{config['first_conv']}.weight"].shape[1] in (model.in_chans, 1)  # 1: a depthwise stem
    assert config["num_classes"] == model.num_classes
    assert config["input_size"][0] == model.in_chans
    if isinstance(model, medical.DenseNetwork):
        frames = (FRAMES.get(name, 5),) if name.startswith("vivim") else ()
        with torch.no_grad():
            model(torch.empty(1, *frames, *config["input_size"], device="meta"))
    assert any(key.startswith(model.heads) for key in parameters)
    assert timm.models.model_entrypoint(name).__name__ == name


# Construction


@each_network
@pytest.mark.parametrize("argument", ["in_chans", "num_classes"])
def test_no_channels_or_classes(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` is 0: expected at least 1"):
        timm.create_model(name, **{argument: 0})


@each_network
def test_unknown_argument_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model(name, not_an_argument=1)


@each_network
def test_no_feature_pyramid(name: str) -> None:
    with pytest.raises(ValueError, match="features_only"):
        timm.create_model(name, features_only=True)


@each_network
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (4, 3)])
def test_channels_and_classes(name: str, channels: int, classes: int) -> None:
    model, x = create(name, in_chans=channels, num_classes=classes), volumes(name, 1, channels)
    assert (model.in_chans, model.num_classes) == (channels, classes)
    y = logits(model(x))[0]
    assert y.shape == expected_shape(name, x, classes) and torch.isfinite(y).all()


@each_network
def test_initialisation_after_to_empty(name: str) -> None:
    model = timm.create_model(name, device="meta").to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(math.nan)  # what the initialisation misses stays so
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    torch.manual_seed(0)
    for key, expected in timm.create_model(name).named_parameters():
        found, spread = model.get_parameter(key), expected.std(correction=0).item()
        if expected.numel() > 200 or not spread:
            assert found.std(correction=0).item() == pytest.approx(spread, rel=0.3), key


# Input


@each_network
def test_wrong_input_is_refused(name: str) -> None:
    model, x = create(name), volumes(name, 1)
    with pytest.raises(ValueError, match="expected"):
        model(x[0])
    with pytest.raises(ValueError, match="expected"):
        model(torch.cat([x, x], dim=2 if name in FRAMES else 1))


@each_network
def test_other_sizes(name: str) -> None:
    """The sides are independent; one that does not fit is refused, not guessed."""
    model, x = create(name), volumes(name, 1)
    other = torch.cat([x, x], dim=-1).transpose(-1, -2)
    if name in SIZED:
        with pytest.raises(ValueError, match="expected"):
            model(other)
    else:
        y = logits(model(other))[0]
        assert y.shape == expected_shape(name, other, model.num_classes) and torch.isfinite(y).all()
    odd = x[..., :-1]
    try:
        y = logits(model(odd))[0]
    except ValueError as refusal:
        assert "expected" in str(refusal)
    else:
        assert y.shape == expected_shape(name, odd, model.num_classes)


@each_network
def test_samples_of_a_batch_are_independent(name: str) -> None:
    model, x = create(name), volumes(name, 3)
    single = torch.cat([logits(model(one[None]))[0] for one in x])
    assert error(logits(model(x))[0], single) < 2e-4  # the rounding that some of these networks amplify


# Training


@each_network
def test_every_parameter_is_used(name: str) -> None:
    """No parameter without a gradient: data-parallel training waits for each."""
    gradients = step(create(name).train(), volumes(name))[1]
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@each_network
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model, x = create(name, **({"drop_path_rate": 0.0} if "drop_path_rate" in arguments(name) else {})), volumes(name)
    for module in model.modules():  # masks would be drawn in another order
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    assert any(getattr(module, "grad_checkpointing", False) for module in recomputing.modules())
    torch.testing.assert_close(step(recomputing.train(), x), step(model.train(), x))
    for key, buffer in model.named_buffers():  # a batch is counted once
        torch.testing.assert_close(recomputing.get_buffer(key), buffer)


@each_network
def test_two_steps_are_bitwise_equal(name: str) -> None:
    model, x = create(name), volumes(name)
    torch.testing.assert_close(step(model, x), step(model, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SUPERVISED)
def test_deep_supervision(name: str) -> None:
    supervised, x = create(name, deep_supervision=True), volumes(name, 1)
    assert None not in step(supervised.train(), x)[1].values()
    outputs = supervised.eval()(x)
    assert isinstance(outputs, list) and outputs[0].shape == expected_shape(name, x, supervised.num_classes)
    sides = [y.shape[2:] for y in outputs]
    assert len(outputs) > 1 and all(a[-1] > b[-1] for a, b in pairwise(sides))
    supervised.decoder.deep_supervision = False
    assert torch.equal(supervised(x), outputs[0])
    # A checkpoint with all the heads fits the network that has one.
    plain = vision_ssm.load_checkpoint(create(name, seed=1), supervised.state_dict())
    torch.testing.assert_close(plain(x), outputs[0])
    with pytest.raises(ValueError, match="deep_supervision=True"):
        plain.decoder.deep_supervision = True


def test_a_network_needs_no_extra() -> None:
    code = """
import json, sys
for name in ("monai", "nibabel", "mmengine", "nnunetv2", "scipy"):
    sys.modules[name] = None
import timm, torch, vision_ssm
y = timm.create_model("umamba_3d_test", num_classes=2).eval()(torch.zeros(1, 1, 12, 12, 12))
print(json.dumps(list(y.shape)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [1, 2, 12, 12, 12]
