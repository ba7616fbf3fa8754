"""nnMamba: the siamese mixer by its formula, shared layers, sizes, conversion."""

import parity
import pytest
import timm
import torch

from vision_ssm.checkpoints import mamba_parameters, rename, stack_paths
from vision_ssm.layers import Mamba, SiameseMamba
from vision_ssm.medical import nnmamba

NAMES = ("nnmamba_seg_test", "nnmamba_nnunet_test", "nnmamba_landmark_test", "nnmamba_cls_test")


def test_siamese_mixer_is_the_mean_over_four_flips():
    torch.manual_seed(0)
    siamese, plain = SiameseMamba(8, 4).double(), Mamba(8, 4).double()
    plain.load_state_dict(siamese.state_dict())
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    flips = ((), (1,), (2,), (1, 2))
    expected = sum(plain(x.flip(axes)).flip(axes) for axes in flips) / 4
    torch.testing.assert_close(siamese(x), expected)


def test_golden_mixer_layer():
    entry = parity.load("nnmamba_mambalayer")
    layers = nnmamba.ConvLayers(3, "batch", slope=0, bias=False)
    layer = nnmamba.MixerLayer(layers, 32, SiameseMamba(32)).eval()
    published = {f"mamba_layer_stem.{k}": torch.from_numpy(v) for k, v in parity.make_state_dict(entry).items()}
    renamed = stack_paths(rename(published, nnmamba._NAMES + nnmamba._MIXER_LAYER_NAMES), mamba_parameters())
    state_dict = {name.removeprefix("stem_mixer."): value for name, value in renamed.items()}
    counters = {name: value for name, value in layer.state_dict().items() if name.endswith("num_batches_tracked")}
    layer.load_state_dict(state_dict | counters)
    (shape,) = entry["inputs"]
    with torch.inference_mode():
        y = layer(torch.from_numpy(parity.make_input(shape)))
    (expected,) = entry["outputs"].values()
    assert parity.compare(y.numpy(), expected) <= entry["tolerance"]


def test_one_mixer_layer_serves_all_later_blocks_of_a_stage():
    model = timm.create_model("nnmamba_seg_test")
    assert sum(isinstance(module, SiameseMamba) for module in model.modules()) == 3
    calls = []
    for stage in model.stages:
        stage.mixer_layer.register_forward_hook(lambda module, *_: calls.append(module))
    model.eval()(torch.randn(1, 1, 16, 16, 16))
    assert calls == [stage.mixer_layer for stage in model.stages for _ in range(2)]


def test_a_stage_of_one_block_has_no_mixer_layer():
    model = timm.create_model("nnmamba_seg_test", blocks=1)
    assert all(stage.mixer_layer is None for stage in model.stages)
    assert model.eval()(torch.randn(1, 1, 16, 16, 16)).shape == (1, 6, 16, 16, 16)


@pytest.mark.parametrize("name", NAMES)
def test_other_channels_and_classes_reach_every_parameter(name):
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=2, num_classes=3)
    y = model(torch.randn(2, 2, 16, 32, 16))
    assert y.shape == ((2, 3) if "_cls_" in name else (2, 3, 16, 32, 16))
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_conversion_leaves_our_own_names(name):
    model = timm.create_model(name)
    own = model.state_dict()
    assert nnmamba.checkpoint_filter_fn(own, model) == own


def test_the_last_copy_of_a_shared_layer_counts():
    model = timm.create_model("nnmamba_seg")
    entry = parity.load("nnmamba_seg")
    published = {key: torch.from_numpy(value) for key, value in parity.make_state_dict(entry).items()}
    converted = nnmamba.checkpoint_filter_fn(published, model)
    D = [published[f"layer2.{block}.mamba_layer.mamba.D"] for block in (1, 2)]
    assert not torch.equal(D[0], D[1])
    assert torch.equal(converted["stages.1.mixer_layer.mixer.ssm.D"][0], D[1])


def test_the_network_of_the_nnunet_trainers_has_one_plain_mamba_a_stage():
    model = timm.create_model("nnmamba_nnunet_test", blocks=2, deep_supervision=True).eval()
    assert not any(isinstance(module, SiameseMamba) for module in model.modules())
    x = torch.randn(1, 1, 16, 32, 16)
    with torch.inference_mode():
        several = model(x)
        assert [tuple(y.shape[1:]) for y in several] == [(4, 16, 32, 16), (4, 8, 16, 8), (4, 4, 8, 4), (4, 2, 4, 2)]
        assert several[0].min() == 0 and all(y.min() < 0 for y in several[1:])
        model.decoder.deep_supervision = False
        assert torch.equal(model(x), several[0])
        layer, y = model.stages[0].mixer_layer, torch.randn(1, 16, 2, 3, 4)
        tokens = layer.mixer(layer.before(y).flatten(2).transpose(1, 2))
        torch.testing.assert_close(layer(y), tokens.transpose(1, 2).reshape(y.shape))


def test_heads_of_deep_supervision_are_left_out_where_there_are_none():
    entry = parity.load("nnmamba_nnunet")
    published = {key: torch.from_numpy(value) for key, value in parity.make_state_dict(entry).items()}
    model = timm.create_model("nnmamba_nnunet")
    converted = nnmamba.checkpoint_filter_fn(published, model)
    assert converted.keys() == {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    with pytest.raises(ValueError, match="made without deep supervision"):
        model.decoder.deep_supervision = True


def test_sizes():
    volume = torch.randn(1, 1, 16, 24, 16)
    with pytest.raises(ValueError, match=r"expected multiples of \(16, 16, 16\)"):
        timm.create_model("nnmamba_seg_test")(volume)
    with pytest.raises(ValueError, match=r"expected \(batch, 2, depth, height, width\)"):
        timm.create_model("nnmamba_landmark_test", in_chans=2)(volume)
    assert timm.create_model("nnmamba_cls_test").eval()(torch.randn(1, 1, 17, 24, 15)).shape == (1, 1)
