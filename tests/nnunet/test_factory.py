"""Networks as nnU-Net builds, switches, compiles and trains them."""

import parity
import pytest
import timm
import torch
import torch.nn.functional as F
from nnunet.plan import configuration
from torch import nn

import vision_ssm
from vision_ssm import nnunet
from vision_ssm.nnunet.factory import network_traits

FOLLOWERS = ["umamba_enc", "umamba_bot", "umamba_v1_enc", "umamba_v1_bot", "lma_unet"]


def _network(name: str, dims: int = 3, side: int = 16, deep_supervision: bool = True, **changes) -> nn.Module:
    kwargs = nnunet.architecture(name, configuration(dims, side))["arch_kwargs"]
    return nnunet.Network(1, 3, deep_supervision, **({"name": name} | kwargs | changes))


@pytest.mark.parametrize("published", nnunet.NETWORKS)
def test_every_published_name_is_a_network(published):
    network = nnunet.NETWORKS[published]
    names = [name for name in (network, f"{network}_2d", f"{network}_3d") if timm.is_model(name)]
    assert names
    assert getattr(nnunet, published).keywords == {"name": network}
    with pytest.raises(AttributeError, match="no attribute"):
        getattr(nnunet, f"{published}2")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", FOLLOWERS)
def test_deep_supervision_is_a_flag(name, dims):
    """One output a target of nnU-Net's: every stage but the deepest, full resolution first."""
    model = _network(name, dims).eval()
    x = torch.randn(1, 1, *[16] * dims)
    with torch.inference_mode():
        several = model(x)
        assert [y.shape[1:] for y in several] == [(3, *[16] * dims), (3, *[8] * dims)]
        model.decoder.deep_supervision = False
        assert torch.equal(model(x), several[0])
        other = _network(name, dims, deep_supervision=False).eval()
        other.load_state_dict(model.state_dict())  # strictly: the heads are there
        assert torch.equal(other(x), several[0])
        other.decoder.deep_supervision = True
        assert torch.equal(other(x)[1], several[1])


def test_a_network_without_deep_supervision_says_so():
    model = _network("segmamba_test", side=48, deep_supervision=False)
    assert model.state_dict().keys() == timm.create_model("segmamba_test").state_dict().keys()
    model.decoder.deep_supervision = False
    assert model.eval()(torch.zeros(1, 1, 48, 48, 48)).shape == (1, 3, 48, 48, 48)
    with pytest.raises(ValueError, match="no deep supervision"):
        model.decoder.deep_supervision = True
    with pytest.raises(ValueError, match="nnUNetTrainerNoDeepSupervision"):
        _network("segmamba_test", side=48, deep_supervision=True)


def test_a_published_checkpoint_of_nnunet_fits():
    """Names, shapes and output of the reference's network, in the envelope of nnU-Net's checkpoints."""
    entry = parity.load("umamba_enc_3d_small")
    given = entry["constructor"]["kwargs"]
    (shape,) = entry["inputs"]
    model = nnunet.UMambaEnc(
        given["input_channels"], given["num_classes"], given["deep_supervision"],
        features_per_stage=given["features_per_stage"], kernel_sizes=given["kernel_sizes"], strides=given["strides"],
        n_conv_per_stage=2, n_conv_per_stage_decoder=2, input_size=given["input_size"],
    )  # fmt: skip
    weights = {key: torch.from_numpy(value) for key, value in parity.make_state_dict(entry).items()}
    vision_ssm.load_checkpoint(model, {"network_weights": weights, "trainer_name": "nnUNetTrainerUMambaEnc"})
    with torch.inference_mode():
        y = model.eval()(torch.from_numpy(parity.make_input(shape)))
    y = y if isinstance(y, list) else [y]
    for index, found in enumerate(y):
        expected = entry["outputs"][f"{'x'.join(map(str, shape))}:out{f'.{index}' if len(y) > 1 else ''}"]
        assert parity.compare(found.numpy(), expected) <= entry["tolerance"]


def _loss(outputs, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the levels, weights halving and the last 0, as nnU-Net's."""
    outputs = outputs if isinstance(outputs, list) else [outputs, outputs]
    total = 0
    for level, y in enumerate(outputs[:-1]):
        small = F.interpolate(target[:, None].float(), size=y.shape[2:])[:, 0].long()
        total = total + F.cross_entropy(y.float(), small) / 2**level
    return total


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in FOLLOWERS for dtype in (torch.float16, torch.bfloat16)),
        ("segmamba_test", torch.bfloat16),  # its float16 convolutions take a CPU half a minute
    ],
)
def test_mixed_precision_step(name, dtype):
    """nnU-Net's step on a GPU: autocast, scaled loss, clipped gradients. The scaler may lower its scale."""
    side = 48 if name == "segmamba_test" else 16  # PyTorch's bf16 convolutions on 2x2x2 maps have random gradients
    model = _network(name, side=side, deep_supervision=network_traits(name, 3).deep_supervision)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler("cpu")
    x = 3 * torch.randn(2, 1, *[side] * 3)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(8):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype):
            outputs = model(x)
            loss = _loss(outputs, (x[:, 0] > 1).long())
        assert all(torch.isfinite(y).all() for y in (outputs if isinstance(outputs, list) else [outputs]))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        finite = torch.isfinite(nn.utils.clip_grad_norm_(model.parameters(), 12))
        scaler.step(optimizer)
        scaler.update()
        if finite:
            break
    assert finite
    used = [p for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(p).all() for p in used)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_compiles_in_one_graph():
    """Traced with its backward pass, as nnU-Net does by default; the flag may change later."""
    model = _network("umamba_enc").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(compiled(x), model(x))
    model.decoder.deep_supervision = False
    torch.testing.assert_close(compiled(x), model(x))


def test_arguments_are_checked():
    kwargs = nnunet.architecture("umamba_enc", configuration(3, 16))["arch_kwargs"]
    with pytest.raises(ValueError, match="needs `input_size`"):
        nnunet.UMambaEnc(1, 3, **{key: value for key, value in kwargs.items() if key != "input_size"})
    with pytest.raises(ValueError, match="lack kernel_sizes"):
        nnunet.UMambaEnc(1, 3, **{key: value for key, value in kwargs.items() if key != "kernel_sizes"})
    with pytest.raises(ValueError, match="takes no features_per_stage"):
        nnunet.SegMamba(1, 3, strides=[[1] * 3], features_per_stage=[8])
    assert nnunet.UMambaEnc(1, 3, **kwargs, channel_tokens=False).stages  # the network's own arguments pass
