"""U-Mamba and LMa-UNet: nnU-Net's plans, where the mixers stand and what they scan."""

import copy
import json
from itertools import product

import pytest
import timm
import torch
from torch import nn

import vision_ssm
from vision_ssm.layers import Mamba, TwinMamba
from vision_ssm.medical import TokenMixer, plan_arguments
from vision_ssm.medical.lma_unet import PixelMixer, WindowMixer

OLD = {
    "configurations": {
        "3d_fullres": {
            "patch_size": [16, 32, 32],
            "UNet_base_num_features": 8,
            "unet_max_num_features": 24,
            "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "n_conv_per_stage_encoder": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "patch_size": [8, 32, 32]},
    }
}
_NETWORK = {
    "n_stages": 3,
    "features_per_stage": [8, 16, 24],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
}
NEW = {"configurations": {"3d_fullres": {"patch_size": [16, 32, 32], "architecture": {"arch_kwargs": _NETWORK}}}}


@pytest.mark.parametrize("plans", [OLD, NEW], ids=["flat", "architecture"])
def test_plans(plans, tmp_path):
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    for source in (plans, tmp_path / "plans.json"):
        assert plan_arguments(source) == dict(
            dims=3,
            input_size=(16, 32, 32),
            features=(8, 16, 24),
            kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            depths=(2, 2, 2),
            decoder_depths=(2, 2),
        )
    model = timm.create_model("umamba_enc_3d", plans=tmp_path / "plans.json", num_classes=3).eval()
    assert model(torch.randn(1, 1, 16, 32, 32)).shape == (1, 3, 16, 32, 32)
    assert model.stages[1][0].conv1.stride == (1, 2, 2) and model.stem[0].conv1.kernel_size == (1, 3, 3)


def test_configurations_that_inherit_in_a_circle():
    plans = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}
    with pytest.raises(ValueError, match="no configuration 'a'"):
        plan_arguments(plans, "a")


def test_inherited_configuration():
    assert plan_arguments(OLD, "3d_cascade_fullres") == plan_arguments(OLD) | dict(input_size=(8, 32, 32))


@pytest.mark.parametrize(
    ("plans", "configuration", "message"),
    [
        (OLD, "2d", "no configuration '2d': expected one of 3d_fullres, 3d_cascade_fullres"),
        ({"configurations": {"3d_fullres": {"patch_size": [8, 8, 8]}}}, "3d_fullres", "has no 'conv_kernel_sizes'"),
        ({}, "3d_fullres", "expected one of none"),
    ],
)
def test_bad_plans(plans, configuration, message):
    with pytest.raises(ValueError, match=message):
        plan_arguments(plans, configuration)


def test_layers_that_the_networks_have_not_are_refused():
    given = copy.deepcopy(NEW)
    given["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["norm_op"] = "torch.nn.BatchNorm3d"
    with pytest.raises(ValueError, match=r"`norm_op` of the plan is .*BatchNorm3d.*: expected InstanceNorm2d"):
        timm.create_model("umamba_bot_3d", plans=given, device="meta")


def test_bad_plan_files(tmp_path):
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(ValueError, match=r"plans\.json is no JSON"):
        plan_arguments(tmp_path / "plans.json")
    with pytest.raises(FileNotFoundError):
        plan_arguments(tmp_path / "none.json")
    with pytest.raises(ValueError, match="umamba_bot_2d has 2 dimensions, the plan 3"):
        timm.create_model("umamba_bot_2d", plans=OLD, configuration="3d_fullres")
    with pytest.raises(ValueError, match="no `plans` are given"):
        timm.create_model("umamba_bot_2d", configuration="2d")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(strides=(1, 2)), "`strides` has 2 entries: expected 3, for 3 stages"),
        (dict(strides=(2, 2, 2)), "first stride is"),
        (dict(kernels=((3, 3), 3, 3)), "expected 3 numbers in each entry"),
        (dict(input_size=(8, 8)), "`input_size` is .* expected 3 numbers"),
        (dict(where="decoder"), "`where` is 'decoder'"),
        (dict(input_size=12), "`input_size` is 12: expected 3 numbers"),
        (dict(input_size=(13, 12, 12)), "expected multiples of"),
        (dict(features=(8,)), "two stages or more"),
        (dict(kernels=(2, 3, 3)), "expected odd numbers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("umamba_3d_test", **arguments)


def _mixers(model: nn.Module) -> list[str]:
    return ["none" if isinstance(mixer, nn.Identity) else mixer.sequence for mixer in model.mixers]


def test_places_and_sequences_of_the_mixers():
    """The published networks: Enc in 2D skips every second stage, and scans channels on small maps."""
    places = {
        "umamba_bot_2d": ["none"] * 6 + ["positions"],
        "umamba_enc_2d": ["positions", "none", "positions", "none", "channels", "none", "channels"],
        "umamba_bot_3d": ["none"] * 5 + ["positions"],
        "umamba_enc_3d": ["positions"] * 5 + ["channels"],
        "umamba_v1_enc_2d": ["positions"] * 7,
    }
    for name, expected in places.items():
        assert _mixers(timm.create_model(name, device="meta")) == expected
    features = (32, 64, 128, 256, 512, 512, 512, 512)
    larger = timm.create_model("umamba_enc_2d", device="meta", features=features, input_size=(384, 384))
    assert [kind != "none" for kind in _mixers(larger)] == [False, True] * 4
    assert "channels" not in _mixers(timm.create_model("umamba_enc_3d", device="meta", channel_tokens=False))


def test_a_mixer_replaces_its_input():
    """No residual connection around U-Mamba's layer."""
    mixer = TokenMixer(8, Mamba(8)).eval()
    nn.init.zeros_(mixer.mixer.out_proj.weight)
    assert not mixer(torch.randn(2, 8, 3, 4, 5)).any()


@pytest.mark.parametrize("sequence", ["positions", "channels"])
def test_token_mixer(sequence):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 2, 3, 4)
    mixer = TokenMixer(6 if sequence == "positions" else 24, nn.Identity(), sequence=sequence, sides=(2, 3, 4))
    tokens = x.flatten(2).transpose(1, 2) if sequence == "positions" else x.flatten(2)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (normed.transpose(1, 2) if sequence == "positions" else normed).reshape(x.shape)
    torch.testing.assert_close(mixer(x), expected)
    torch.testing.assert_close(mixer(x.to(memory_format=torch.channels_last_3d)), expected)


def test_mixers_leave_autocast():
    mixer, x = TokenMixer(8, Mamba(8)).eval(), torch.randn(1, 8, 4, 4)
    expected = mixer(x)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(mixer(x), expected)
        assert mixer(x.half()).dtype == torch.float32


def test_first_release_starts_as_its_skips():
    """The encoder's network; the reference zeroes no norm of the bottleneck's."""
    enc = timm.create_model("umamba_v1_3d_test")
    bot = timm.create_model("umamba_v1_3d_test", where="bottleneck")
    assert not enc.stages[0][0].norm2.weight.any() and enc.stages[0][0].norm1.weight.all()
    assert bot.stages[0][0].norm2.weight.all()


# LMa-UNet


def _twin_by_hand(twin: TwinMamba, tokens: torch.Tensor) -> torch.Tensor:
    """Two independent causal mixers, one on the reversed sequence."""
    dim = tokens.shape[-1]
    total = 0
    for k in (0, 1):
        one = Mamba(dim)
        one.in_proj.weight = nn.Parameter(twin.in_proj.weight.chunk(2)[k])
        one.out_proj.weight = twin.out_proj.weight
        for name in ("conv1d.weight", "conv1d.bias", "ssm.x_proj", "ssm.dt_proj", "ssm.dt_bias", "ssm.A_log", "ssm.D"):
            one.get_parameter(name).data = twin.get_parameter(name)[k : k + 1]
        total = total + (one(tokens.flip(1)).flip(1) if k else one(tokens))
    return total


@torch.no_grad()
def test_twin_mamba():
    twin, tokens = TwinMamba(8), torch.randn(2, 11, 8)
    torch.testing.assert_close(twin(tokens), _twin_by_hand(twin, tokens))


@torch.no_grad()
@pytest.mark.parametrize(("sides", "period"), [((6, 8), (3, 2)), ((4, 6, 4), (2, 3, 1))])
def test_pixel_mixer_scans_lattices(sides, period):
    mixer, x = PixelMixer(8, period), torch.randn(2, 8, *sides)
    expected = x.clone()
    for offsets in product(*map(range, period)):
        lattice = (..., *(slice(offset, None, step) for offset, step in zip(offsets, period)))
        part = x[lattice]
        tokens = mixer.norm(part.flatten(2).transpose(1, 2))
        expected[lattice] += mixer.mixer(tokens).transpose(1, 2).reshape(part.shape)
    torch.testing.assert_close(mixer(x), expected)
    whole = mixer(torch.cat([x, x[:, :, :1]], 2))  # the period does not divide any more
    tokens = mixer.norm(torch.cat([x, x[:, :, :1]], 2).flatten(2).transpose(1, 2))
    change = mixer.mixer(tokens).transpose(1, 2).reshape(whole.shape)
    torch.testing.assert_close(whole, torch.cat([x, x[:, :, :1]], 2) + change)


@torch.no_grad()
def test_window_mixer_scans_means():
    mixer, x = WindowMixer(8, 2), torch.randn(1, 8, 4, 6)
    means = x.unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean((3, 5))
    change = mixer.mixer(mixer.norm(means.flatten(2).transpose(1, 2))).transpose(1, 2).reshape(1, 8, 2, 3)
    torch.testing.assert_close(mixer(x), x + change.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_windows_fit_the_published_patches():
    """Lengths of the pixel layer's sequences at the patches that it was made for."""
    for name, sides in (("lma_unet_2d", (320, 320)), ("lma_unet_3d", (40, 224, 192))):
        model = timm.create_model(name, device="meta")
        for stride, mixer in zip([s[0].conv1.stride for s in model.stages], model.mixers):
            sides = tuple(side // step for side, step in zip(sides, stride))
            assert all(side % period == 0 for side, period in zip(sides, mixer[0].period))
    with pytest.raises(ValueError, match="`window` is"):
        timm.create_model("lma_unet_3d_test", window=(5, 5))


def test_checkpoint_of_the_wrong_network_names_the_right_one():
    source = timm.create_model("umamba_3d_test").state_dict()
    with pytest.raises(vision_ssm.CheckpointError, match="umamba_3d_test"):
        vision_ssm.load_checkpoint(timm.create_model("umamba_v1_3d_test"), source)
