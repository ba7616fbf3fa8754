"""Fresh backbones start as the references do: means and deviations measured on the published code, or by its rules."""

import pytest
import timm
import torch
from starts import holds, select

import vision_ssm  # noqa: F401 - registers the models

MAMBA_STEPS = ("-4.6", "1.35", "any")  # softplus of them is log-uniform from 0.001 to 0.1
SCAN = (
    (r".*\.ssm\.D", "1", "0", "constant"),
    (r".*norm.*\.weight", "1", "0", "constant"),
)


def create(name: str, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def _check_states(model: torch.nn.Module) -> None:
    for value in select(model, r".*\.ssm\.A_log").values():
        steps = torch.arange(1, value.shape[-1] + 1).float().log()
        torch.testing.assert_close(value, steps.to(value.dtype).expand_as(value))


VIM = (
    *SCAN,
    (r".*\.ssm\.dt_bias@0:1", *MAMBA_STEPS),
    (r".*\.in_proj\.weight", "0", "0.042", "uniform"),
    (r".*\.conv1d\.(weight|bias)", "0", "0.289", "uniform"),
    (r".*\.ssm\.x_proj", "0", "0.0295", "uniform"),
    (r".*\.ssm\.dt_proj", "0", "0.167", "uniform"),
    (r".*\.out_proj\.weight", "0", "0.0147", "uniform"),  # 0.0295 over the square root of 4 blocks
    (r"patch_embed\.proj\.weight", "0", "0.036", "normal"),
    (r"(patch_embed\.proj|head)\.bias", "0", "0", "constant"),
    (r"head\.weight", "0", "0.020", "normal"),
)
TABLES = ((r"pos_embed|cls_token|tail_token", "0", "0.020", "normal"),)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        dict(class_token=False, global_pool="avg", rope=True, pos_embed=True),
        dict(class_token="both_ends", rms_norm=False),
        dict(img_size=(64, 96), dynamic_img_size=True, drop_path_rate=0.1),
        dict(dtype=torch.bfloat16),
    ],
)
def test_vim(kwargs):
    model = create("vim_tiny_patch16_224", depth=4, **kwargs)
    holds(model, *VIM, *TABLES, (r".*\.ssm\.dt_bias@1:", "0", "0", "constant"))
    _check_states(model)


def test_vim_with_mambas_steps_in_both_directions():
    model = create("vim_tiny_patch16_224", depth=4, ssm_init="mamba")
    holds(model, *VIM, *TABLES, (r".*\.ssm\.dt_bias@1:", *MAMBA_STEPS))


@pytest.mark.parametrize("kwargs", [dict(bidirectional="v1"), dict(paired=True)])
def test_vim_with_one_bias_of_the_steps_keeps_it(kwargs):
    holds(create("vim_tiny_patch16_224", depth=4, **kwargs), *VIM)


def test_vim_of_other_channels_and_layer_scale():
    model = create("vim_tiny_patch16_224", depth=2, in_chans=1, layer_scale=0.25)
    holds(
        model,
        (r"patch_embed\.proj\.weight", "0", "0.0625", "normal"),
        (r".*\.gamma", "0.25", "0", "constant"),
    )


LOCAL_VIM = (
    *SCAN,
    (r".*\.in_proj\.weight", "0", "0.020", "normal"),
    (r".*\.conv1d\.(weight|bias)", "0", "0.289", "uniform"),
    (r".*\.path_gate\.(reduce|expand)\.weight", "0", "0.020", "normal"),
    (r".*\.path_gate\.(reduce|expand|norm)\.bias", "0", "0", "constant"),
    (r".*\.out_proj\.weight", "0", "0.0147", "uniform"),
    (r"patch_embed\.proj\.(weight|bias)", "0", "0.021", "uniform"),
    (r"pos_embed|head\.weight", "0", "0.020", "normal"),
    (r"head\.bias", "0", "0", "constant"),
)
SEEN_AS_LINEAR = (
    (r".*\.ssm\.x_proj", "0", "0.020", "normal"),
    (r".*\.ssm\.dt_proj", "0", "0.020", "normal"),
    (r".*\.ssm\.dt_bias", "0", "0", "constant"),
)


@pytest.mark.parametrize(
    "kwargs", [{}, dict(class_token="middle"), dict(rms_norm=False, img_size=128), dict(dtype=torch.bfloat16)]
)
def test_local_vim(kwargs):
    model = create("local_vim_tiny", depth=4, directions="h v- w7 w7-", **kwargs)
    holds(model, *LOCAL_VIM, *SEEN_AS_LINEAR)
    _check_states(model)
    if model.cls_token is not None:
        holds(model, ("cls_token", "0", "0", "constant"))


def test_local_vim_with_mambas_steps():
    model = create("local_vim_tiny", depth=4, directions="h v- w7 w7-", ssm_init="mamba")
    holds(
        model,
        *LOCAL_VIM,
        (r".*\.ssm\.x_proj", "0", "0.0295", "uniform"),
        (r".*\.ssm\.dt_proj", "0", "0.167", "uniform"),
        (r".*\.ssm\.dt_bias", *MAMBA_STEPS),
    )


VMAMBA = (
    *SCAN,
    (r".*\.(in_proj|out_proj)\.weight", "0", "0.020", "normal"),
    (r".*\.ssm\.dt_bias", *MAMBA_STEPS),
    (r"head\.fc\.weight", "0", "0.020", "normal"),
    (r"(head\.fc|.*norm)\.bias", "0", "0", "constant"),
)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "vmamba_tiny_s1l8",
            (
                (r".*\.mlp\.fc[12]\.weight", "0", "0.020", "normal"),
                (r".*\.mlp\.fc[12]\.bias", "0", "0", "constant"),
                (r"stem\.0\.(weight|bias)", "0", "0.111", "uniform"),
                (r"stages\.0\..*\.conv2d\.weight", "0", "0.192", "uniform"),
                (r"stages\.0\..*\.ssm\.x_proj", "0", "0.0589", "uniform"),
                (r"stages\.0\..*\.ssm\.dt_proj", "0", "0.236", "uniform"),
            ),
        ),
        (
            "vanilla_vmamba_tiny",
            (
                (r"stem\.0\.(weight|bias)", "0", "0.0833", "uniform"),
                (r".*\.downsample\.reduction\.weight", "0", "0.020", "normal"),
                (r"stages\.0\..*\.ssm\.x_proj", "0", "0.0417", "uniform"),
            ),
        ),
        (
            "local_vmamba_tiny",
            (
                (r".*\.path_gate\.(reduce|expand)\.weight", "0", "0.020", "normal"),
                (r".*\.path_gate\.(reduce|expand)\.bias", "0", "0", "constant"),
                (r"stages\.0\..*\.ssm\.x_proj", "0", "0.0417", "uniform"),
                (r"stages\.0\..*\.ssm\.dt_proj", "0", "0.236", "uniform"),
            ),
        ),
    ],
)
def test_hierarchical_backbones(name, lines):
    directions = dict(directions="h v- w2 w7-") if name.startswith("local") else {}
    model = create(name, depths=(1, 1, 1, 1), **directions)
    holds(model, *VMAMBA, *lines)
    _check_states(model)


@pytest.mark.parametrize("name", ["vim_test", "local_vim_test"])
def test_initialised_again(name):
    """`init_weights` forgets what was there, and keeps the choice of the start, also after the blocks were cut."""
    model = create(name, ssm_init="mamba")
    depth = len(model.blocks)
    model.prune_intermediate_layers([1])
    before = select(model, r".*\.out_proj\.weight")
    spread = torch.cat([v.flatten() for v in before.values()]).std().item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.init_weights()
    holds(model, (r".*\.ssm\.dt_bias", *MAMBA_STEPS))
    after = torch.cat([v.flatten() for v in select(model, r".*\.out_proj\.weight").values()])
    assert after.std().item() == pytest.approx(spread, rel=0.05)
    assert after.abs().max() <= (64 * depth) ** -0.5


@pytest.mark.parametrize("name", ["vim_test", "local_vim_test"])
def test_backbones_of_feature_maps_start_alike(name):
    start = (r".*\.ssm\.dt_bias@1:", "0", "0", "constant")
    holds(timm.create_model(name, features_only=True), start)
    with pytest.raises(AssertionError, match="not all 0"):
        holds(timm.create_model(name, features_only=True, ssm_init="mamba"), start)


@pytest.mark.parametrize("name", ["vim_test", "local_vim_test"])
def test_unknown_start(name):
    with pytest.raises(ValueError, match="`ssm_init` is 'zeros': expected 'reference' or 'mamba'"):
        timm.create_model(name, ssm_init="zeros")
