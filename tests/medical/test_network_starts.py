"""Fresh networks start as the references do: means and deviations measured on the published code, or by its rules."""

import math

import pytest
import timm
import torch
from starts import convolutions, default_deviation, holds

import vision_ssm  # noqa: F401 - registers the models

MAMBA_STEPS = ("-4.6", "1.35", "any")
MAMBA = ((r".*\.ssm\.D", "1", "0", "constant"), (r".*\.ssm\.dt_bias", *MAMBA_STEPS))


def create(name: str, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def _start_by_default(model: torch.nn.Module) -> None:
    """Every convolution starts as PyTorch's, weight and bias."""
    for name, module in convolutions(model):
        kinds = "(weight|bias)" if module.bias is not None else "weight"
        holds(model, (rf"{name}\.{kinds}", "0", default_deviation(module.weight), "uniform"))


def _start_as_nnunets(model: torch.nn.Module) -> None:
    """Every convolution starts normal, with a deviation of sqrt(2 / fan_in) for a slope of 0.01, and a bias of 0."""
    for part, module in convolutions(model):
        deviation = math.sqrt(2 / (1 + 0.01**2) / module.weight[0].numel())
        holds(model, (rf"{part}\.weight", "0", f"{deviation:.6f}", "normal"))
        if module.bias is not None:
            holds(model, (rf"{part}\.bias", "0", "0", "constant"))


SHALLOW_VIVIM = dict(depths=(1, 1, 1, 1), temporal_depths=(1, 1, 1, 1))
VIVIM = (
    (r"decoder\.head\.weight", "0", "0.021", "uniform"),
    (r"edge_head\.weight", "0", "0.074", "uniform"),
    (r".*\.temporal\..*\.mlp\.conv\.weight", "0", "0.111", "uniform"),
    (r".*\.temporal\..*\.mlp\.conv\.bias", "0", "0.113", "uniform"),
    (r".*\.(in_proj|out_proj|fc1|fc2|query|key|value|proj)\.weight", "0", "0.020", "normal"),
    (r"stages\.\d\.(embed|blocks\..*\.(reduce|mlp\.conv))\.weight", "0", "0.020", "normal"),
    (r"decoder\.(fuse|projections\.\d)\.weight", "0", "0.020", "normal"),
    (r"stages\.\d\.(embed|blocks\..*\.(reduce|mlp\.conv|fc1|fc2|query|proj))\.bias", "0", "0", "constant"),
    (r".*\.ssm\.D", "1", "0", "constant"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vivim(dtype):
    model = create("vivim", edge=True, dtype=dtype, **SHALLOW_VIVIM)
    holds(
        model,
        *VIVIM,
        (r".*\.ssm\.(x_proj|dt_proj)", "0", "0.020", "normal"),
        (r".*\.ssm\.dt_bias", "0", "0", "constant"),
    )
    assert model.decoder.head.bias.abs().max() > 0


def test_vivim_with_mambas_steps():
    model = create("vivim", edge=True, ssm_init="mamba", **SHALLOW_VIVIM)
    holds(
        model,
        *VIVIM,
        (r"stages\.0\..*\.ssm\.x_proj", "0", "0.051", "uniform"),
        (r"stages\.0\..*\.ssm\.dt_proj", "0", "0.29", "uniform"),
        (r".*\.ssm\.dt_bias", *MAMBA_STEPS),
    )


def test_fresh_logits_of_vivim_are_small():
    """A deviation of 0.36 was measured on the published code; a head that started by its outputs made it 23."""
    model = create("vivim", **SHALLOW_VIVIM).train()
    with torch.no_grad():
        assert 0.18 < model(torch.randn(1, 5, 3, 64, 64)).std() < 0.72


def test_segmamba():
    model = create("segmamba", features=(48, 48, 48, 48), hidden=48, depths=(1, 1, 1, 1))
    forward, further = r".*\.ssm\.dt_bias@0:1", r".*\.ssm\.dt_bias@1:"
    _start_by_default(model)
    holds(model, (forward, *MAMBA_STEPS), (further, "0", "0.33", "uniform"))
    holds(create("segmamba_test", ssm_init="mamba"), (forward, *MAMBA_STEPS), (further, *MAMBA_STEPS))


@pytest.mark.parametrize("name", ["segmamba_test", "vivim_test"])
def test_unknown_start(name):
    with pytest.raises(ValueError, match="`ssm_init` is 'zeros': expected 'reference' or 'mamba'"):
        timm.create_model(name, ssm_init="zeros")


def test_lightm_unet():
    model = create("lightm_unet_2d")
    _start_by_default(model)
    holds(
        model,
        *MAMBA,
        (r"stem\.(depthwise|pointwise)\.weight", "0", "0.33", "any"),
        (r"decoder\.0\.reduce\.weight", "0", "0.036", "uniform"),
        (r"decoder\..*\.depthwise\.weight", "0", "0.193", "uniform"),
        (r"decoder\.0\..*\.pointwise\.weight", "0", "0.051", "uniform"),
        (r"head\.depthwise\.(weight|bias)", "0", "0.59", "any"),
        (r".*skip_scale", "1", "0", "constant"),
    )
    _start_by_default(create("lightm_unet_3d_test", in_chans=4))


@pytest.mark.parametrize("name", ["nnmamba_seg", "nnmamba_nnunet", "nnmamba_landmark", "nnmamba_cls"])
def test_nnmamba(name):
    model = create(name, blocks=2, in_chans=1)
    _start_by_default(model)
    holds(
        model,
        *MAMBA,
        (r"stem\.0\.(weight|bias)", "0", "0.111", "uniform"),
        (r"stages\.0\.blocks\.0\.conv1\.weight", "0", "0.0196", "uniform"),
        (r".*norm\d?\.weight", "1", "0", "constant"),
    )
    if name != "nnmamba_cls":
        holds(model, (r"head\.0\.weight", "0", "0.0197", "uniform"))


def test_mamba_nd():
    model = create("mamba_nd_small_btcv", depth=4, taps=(1, 2, 3), input_size=32)
    _start_by_default(model)
    holds(
        model,
        *MAMBA,
        (r"patch_embed\.weight", "0", "0.0090", "uniform"),
        (r"head\.(weight|bias)", "0", "0.102", "uniform"),
        (r"pos_embed", "0", "0", "constant"),
    )


def test_swin_umamba_d():
    model = create("swin_umamba_d", depths=(1, 1, 1, 1), deep_supervision=True)
    _start_as_nnunets(model)
    holds(
        model,
        *MAMBA,
        (r"encoder\..*\.(in_proj|out_proj|reduction)\.weight", "0", "0.020", "normal"),
        (r"decoder\.ups\.0\.expand\.weight", "0", "0.0208", "uniform"),
        (r"decoder\.joins\.0\.(weight|bias)", "0", "0.0208", "uniform"),
        (r"decoder\.stages\.0\..*\.in_proj\.weight", "0", "0.0294", "uniform"),
        (r"decoder\.stages\.0\..*\.out_proj\.weight", "0", "0.0208", "uniform"),
        (r"decoder\.stages\.2\..*\.in_proj\.weight", "0", "0.059", "uniform"),
    )


@pytest.mark.parametrize(
    ("name", "zeroed"),
    [
        ("umamba_bot_2d", ""),
        ("umamba_enc_3d", ""),
        ("umamba_v1_bot_3d", ""),
        ("umamba_v1_enc_2d", r"stages\..*\.norm2\.(weight|bias)"),
        ("lma_unet_3d", r"stages\..*\.norm2\.(weight|bias)"),
    ],
)
def test_networks_of_nnunets_plans(name, zeroed):
    size = dict(input_size=(16, 16, 16)) if name == "umamba_enc_3d" else {}
    sizes = dict(kernels=(3, 3, 3), strides=(1, 2, 2), depths=(2, 2, 2), decoder_depths=(2, 2), **size)
    model = create(name, features=(8, 16, 16), deep_supervision=True, **sizes)
    _start_as_nnunets(model)
    holds(model, *MAMBA)
    if zeroed:
        holds(model, (zeroed, "0", "0", "constant"))
    else:
        holds(model, (r"stages\..*\.norm2\.weight", "1", "0", "constant"))


@pytest.mark.parametrize("name", ["vm_unet", "mamba_unet", "vm_unet_v2", "swin_umamba"])
def test_networks_on_vmambas_encoder(name):
    deeper = dict(decoder_depths=(1, 1, 1, 1)) if name == "vm_unet" else {}
    model = create(f"{name}_test" if name == "mamba_unet" else name, depths=(1, 1, 1, 1), **deeper)
    _start_by_default(model)
    holds(
        model,
        *MAMBA,
        (r".*\.(in_proj|out_proj|reduction)\.weight", "0", "0.020", "normal"),
    )


def test_medmamba():
    model = create("medmamba_tiny", depths=(1, 1, 1, 1))
    holds(
        model,
        *MAMBA,
        (r"stem\.0\.weight", "0", "0.0361", "normal"),  # sqrt(2 / (96 * 16))
        (r".*\.(in_proj|out_proj)\.weight", "0", "0.020", "normal"),
        (r"head\.fc\.weight", "0", "0.020", "normal"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swin_unet(dtype):
    model = create("swin_unet_weak", depths=(1, 1, 1, 1), dtype=dtype)
    holds(
        model,
        (r".*\.(qkv|proj|fc1|fc2|expand|reduction)\.weight", "0", "0.020", "normal"),
        (r".*\.relative_position_bias_table", "0", "0.020", "normal"),
        (r"decoder\.heads\.\d\.weight", "0", "0.059", "any"),
    )
