"""Learning rates and weight decays of each layer, against lists written by hand."""

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("vision_ssm.openmmlab")  # puts the bridge in place, before what needs it
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

LR, WD = 1e-2, 0.3
# Power of the factor for each part of the backbone: the last block has 1, the stem the largest.
VMAMBA = {
    "stem": 6,
    "stages.0.blocks.0": 5,
    "stages.1.downsample": 4,
    "stages.1.blocks.0": 4,
    "stages.2.downsample": 3,
    "stages.2.blocks.0": 3,
    "stages.2.blocks.1": 2,
    "stages.3.downsample": 1,
    "stages.3.blocks.0": 1,
}
VIM = {"pos_embed": 4, "patch_embed": 4, "blocks.0": 3, "blocks.1": 2, "blocks.2": 1}
CASES = {
    "vmamba_test": (dict(out_norm=True), VMAMBA),
    "vim_test": (dict(out_indices=(0, 2), out_norm=True), VIM),
    # Pruned after the second block, which is then the last.
    "local_vim_test": (dict(out_indices=(1,)), {"pos_embed": 3, "patch_embed": 3, "blocks.0": 2, "blocks.1": 1}),
}
UNDECAYED = ("pos_embed", ".A_log", ".D", ".dt_bias", "conv1d.bias")


class Net(BaseModel):
    """A backbone below a head with every kind of parameter."""

    def __init__(self, **backbone):
        super().__init__()
        self.backbone = MODELS.build(dict(type="TimmFeatures", **backbone))
        self.head = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), torch.nn.BatchNorm2d(8))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return self.head(self.backbone(inputs)[-1])


def groups(net: Net, optimizer: dict | None = None, **paramwise) -> dict[str, dict]:
    """The options of each parameter, by its name; each is in one group only."""
    cfg = dict(
        type="OptimWrapper",
        constructor="TimmLayerDecay",
        optimizer=optimizer or dict(type="AdamW", lr=LR, weight_decay=WD),
    )
    if paramwise:
        cfg["paramwise_cfg"] = paramwise
    names = {id(p): name for name, p in net.named_parameters()}
    found = {}
    for group in build_optim_wrapper(net, cfg).optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = dict(lr=group["lr"], weight_decay=group["weight_decay"])
    return found


@pytest.mark.parametrize("model_name", CASES)
def test_rates_and_decays(model_name):
    kwargs, powers = CASES[model_name]
    net = Net(model_name=model_name, **kwargs)
    found = groups(net, layer_decay=0.5)
    assert found.keys() == dict(net.named_parameters()).keys()
    seen = set()
    for name, parameter in net.named_parameters():
        inner = name.removeprefix("backbone.model.")
        layers = [part for part in powers if inner == part or inner.startswith(part + ".")]
        assert len(layers) == (inner != name), name
        seen |= set(layers)
        power = powers[layers[0]] if layers else 0
        assert found[name]["lr"] == pytest.approx(LR * 0.5**power), name
        plain = parameter.ndim <= 1 or (inner != name and inner.endswith(UNDECAYED))
        assert found[name]["weight_decay"] == (0 if plain else WD), name
    assert seen == powers.keys()


def test_the_stem_has_the_smallest_rate():
    found = groups(Net(model_name="vanilla_vmamba_test", out_norm=True), layer_decay=0.9)
    smallest = min(options["lr"] for options in found.values())
    assert {name for name in found if found[name]["lr"] == smallest} == {
        f"backbone.model.stem.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("paramwise", [{}, dict(layer_decay=1.0), dict(layer_decay=1)])
def test_without_layer_decay_rates_are_equal(paramwise):
    net = Net(model_name="vmamba_test")
    found = groups(net, **paramwise)
    assert {options["lr"] for options in found.values()} == {LR}
    assert found["backbone.model.stages.0.blocks.0.mixer.ssm.A_log"]["weight_decay"] == 0
    assert found["backbone.model.stages.0.blocks.0.mixer.in_proj.weight"]["weight_decay"] == WD


def test_frozen_parameters_are_left_out():
    net = Net(model_name="vim_test", out_indices=(2,), frozen_stages=1)
    found = groups(net, layer_decay=0.5)
    assert found.keys() == {name for name, p in net.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.model.blocks.0", "backbone.model.patch_embed")) for name in found)
    assert "backbone.model.pos_embed" not in found and "backbone.model.blocks.1.norm.weight" in found
    assert found["backbone.model.blocks.2.norm.weight"]["lr"] == LR * 0.5  # freezing moves no layer


def test_other_options_apply_outside_the_backbone():
    net = Net(model_name="vmamba_test")
    found = groups(net, layer_decay=0.5, custom_keys=dict(head=dict(lr_mult=10.0)))
    assert found["head.0.weight"] == dict(lr=LR * 10, weight_decay=WD)
    found = groups(net, layer_decay=0.5, flat_decay_mult=1.0)
    assert found["head.0.bias"]["weight_decay"] == found["head.1.weight"]["weight_decay"] == WD
    assert found["backbone.model.stem.0.bias"]["weight_decay"] == 0


def test_custom_keys_apply_inside_the_backbone():
    keys = {".A_log": dict(decay_mult=1.0), "blocks.2": dict(lr_mult=0.1), "model.pos_embed": dict(decay_mult=0.5)}
    found = groups(Net(model_name="vim_test", out_indices=(2,)), layer_decay=0.5, custom_keys=keys)
    mixer = "backbone.model.blocks.{}.mixer."
    assert found[mixer.format(0) + "ssm.A_log"] == dict(lr=LR * 0.5**3, weight_decay=WD)
    assert found[mixer.format(0) + "ssm.D"]["weight_decay"] == 0
    assert found["backbone.model.pos_embed"] == dict(lr=LR * 0.5**4, weight_decay=WD * 0.5)
    assert found[mixer.format(2) + "in_proj.weight"] == dict(lr=pytest.approx(LR * 0.05), weight_decay=WD)
    # The longest key that fits speaks for a parameter, as in MMEngine's constructor.
    assert found[mixer.format(2) + "ssm.A_log"] == dict(lr=pytest.approx(LR * 0.05), weight_decay=0)


def test_models_of_timm_have_layers_too():
    found = groups(Net(model_name="resnet18", out_indices=(1, 2)), layer_decay=0.5)
    assert found["backbone.model.conv1.weight"]["lr"] < found["backbone.model.layer2.1.conv2.weight"]["lr"] == LR / 2


def test_no_weight_decay_given():
    found = groups(Net(model_name="vmamba_test"), dict(type="SGD", lr=LR), layer_decay=0.5)
    assert {options["weight_decay"] for options in found.values()} == {0}
    assert found["backbone.model.stem.0.weight"]["lr"] == LR * 0.5**6


@pytest.mark.parametrize("factor", [0, -0.5, 1.1])
def test_factor_out_of_range(factor):
    with pytest.raises(ValueError, match=f"`layer_decay` is {factor}: expected more than 0 and at most 1"):
        groups(Net(model_name="vmamba_test"), layer_decay=factor)


def test_no_learning_rate():
    with pytest.raises(ValueError, match="`optimizer` has no `lr`"):
        groups(Net(model_name="vmamba_test"), dict(type="AdamW"), layer_decay=0.9)


def test_the_given_config_stays_as_it_is():
    paramwise = dict(layer_decay=0.9)
    groups(Net(model_name="vmamba_test"), **paramwise)
    assert paramwise == dict(layer_decay=0.9)
