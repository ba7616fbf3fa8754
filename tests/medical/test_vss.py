"""The networks of VMamba's blocks: conversion, sizes, errors, and what their references let users do."""

import parity
import pytest
import timm
import torch
import torch.nn.functional as F

import vision_ssm
from vision_ssm.cards import network_facts
from vision_ssm.checkpoints import CheckpointError, rename
from vision_ssm.medical import load_encoder
from vision_ssm.models.vmamba import PatchMerging

# Small network: golden file that holds the reference's names of the large one.
GOLDEN = {
    "vm_unet": "vmunet_isic",
    "vm_unet_v2": "vmunet_v2",
    "mamba_unet": "mambaunet_tiny",
    "medmamba_tiny": "medmamba_t",
    "swin_umamba": "swinumamba_sizes",
    "swin_umamba_d": "swinumamba_d",
    "unet_semi": "mambaunet_semi_unet",
    "swin_unet_weak": "mambaunet_weak_swinunet",
}
SEGMENTING = [
    "vm_unet_test", "vm_unet_v2_test", "mamba_unet_test", "swin_umamba_test", "swin_umamba_d_test", "unet_semi_test",
    "swin_unet_weak_test",
]  # fmt: skip
GREY = ["vm_unet_test", "vm_unet_v2_test", "mamba_unet_test", "swin_unet_weak_test"]


def images(model, height=64, width=64, batch=2):
    return torch.randn(batch, model.in_chans, height, width)


def with_supervision(name):
    return dict(deep_supervision=True) if name.startswith("swin_umamba") else {}


# Conversion


@pytest.mark.parametrize(("name", "golden"), GOLDEN.items())
def test_conversion_is_idempotent(name, golden):
    """Names alone count: the tensors have no memory."""
    entry = parity.load(golden)
    model = timm.create_model(name, device="meta", **with_supervision(name))
    published = {key: torch.empty(shape, device="meta") for key, shape in entry["state_dict"].items()}
    once = vision_ssm.convert_state_dict(published, model)
    twice = vision_ssm.convert_state_dict(once, model)
    assert list(once) == list(twice) and all(once[key] is twice[key] for key in once)
    assert {key for key in model.state_dict() if not key.endswith("num_batches_tracked")} == set(once)


def test_heads_of_deep_supervision_are_left_out_of_a_network_without():
    published = {k: torch.empty(s, device="meta") for k, s in parity.load("swinumamba_d")["state_dict"].items()}
    model = timm.create_model("swin_umamba_d", device="meta")
    assert set(vision_ssm.convert_state_dict(published, model)) == set(model.state_dict())


@pytest.mark.parametrize(("name", "golden"), GOLDEN.items())
def test_facts_have_the_published_counts(name, golden):
    found = network_facts()[name]
    assert found.get("params_published", found["params"]) == parity.load(golden)["params"]


# Shapes, options, errors


@pytest.mark.parametrize("name", SEGMENTING)
def test_wrong_inputs_are_refused(name):
    model = timm.create_model(name, in_chans=2, device="meta")
    with pytest.raises(ValueError, match=r"expected \(batch, 2, height, width\)"):
        model(torch.empty(1, 3, 64, 64, device="meta"))
    with pytest.raises(ValueError, match=r"expected (multiples of|\(64, 64\))"):
        model(torch.empty(1, 2, 64, 72, device="meta"))


@pytest.mark.parametrize("name", GREY)
def test_grey_images(name):
    """Three channels take a repeated grey image; so does a stem of one channel whose kernel is the sum."""
    model = timm.create_model(name).eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected = model(x.repeat(1, 3, 1, 1))
        torch.testing.assert_close(model(x), expected)
        single = timm.create_model(name, in_chans=1).eval()
        weights = model.state_dict()
        weights["encoder.stem.0.weight"] = weights["encoder.stem.0.weight"].sum(1, keepdim=True)
        single.load_state_dict(weights)
        torch.testing.assert_close(single(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vm_unet_test", "vm_unet_v2_test"])
def test_activation(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = images(model)
    with torch.inference_mode():
        logits = model(x)
        model.activation = True
        torch.testing.assert_close(model(x), logits.sigmoid())
        several = timm.create_model(name, num_classes=2, activation=True).eval()
        assert several(x).min() < 0  # the logits of several classes stay


@pytest.mark.parametrize(
    ("name", "strides"), [("swin_umamba_test", (1, 2, 4, 8)), ("swin_umamba_d_test", (1, 4, 8, 16))]
)
def test_strides_of_the_supervised_levels(name, strides):
    model = timm.create_model(name, deep_supervision=True).eval()
    x = images(model, 64, 96)
    with torch.inference_mode():
        assert [tuple(y.shape[2:]) for y in model(x)] == [(64 // s, 96 // s) for s in strides]


def test_product_of_a_map_that_is_not_square_is_that_of_its_transpose():
    """VM-UNetV2 resizes both sides by the same rule: its decoder commutes with the transpose, if its kernels do."""
    torch.manual_seed(0)
    decoder = timm.create_model("vm_unet_v2_test").decoder.eval()
    with torch.no_grad():
        for p in decoder.parameters():
            if p.dim() == 4:
                p.copy_((p + p.transpose(2, 3)) / 2)
        maps = [torch.randn(1, 16 * 2**i, 16 // 2**i, 24 // 2**i) for i in range(4)]
        for y, z in zip(decoder(maps), decoder([x.transpose(2, 3) for x in maps])):
            torch.testing.assert_close(y.transpose(2, 3), z)


def test_half_scale_of_several_classes_is_that_of_each():
    """VM-UNetV2's transposed convolution keeps the classes apart."""
    torch.manual_seed(0)
    model = timm.create_model("vm_unet_v2_test", num_classes=3, half_scale=True).eval()
    one = timm.create_model("vm_unet_v2_test").eval()
    weights = model.state_dict()
    x = images(model)
    with torch.inference_mode():
        expected = model(x)
        for i in range(3):
            part = {k: v[i : i + 1] if k.startswith(model.heads) else v for k, v in weights.items()}
            one.load_state_dict(part)
            torch.testing.assert_close(one(x), expected[:, i : i + 1])


def test_merging_crops_or_pads():
    torch.manual_seed(0)
    crop, pad = PatchMerging(4, odd="crop"), PatchMerging(4)
    pad.load_state_dict(crop.state_dict())
    x = torch.randn(1, 4, 7, 9)
    torch.testing.assert_close(crop(x), pad(x[:, :, :6, :8]))
    torch.testing.assert_close(pad(x), pad(F.pad(x, (0, 1, 0, 1))))
    with pytest.raises(ValueError, match="expected 'pad' or 'crop'"):
        PatchMerging(4, odd="keep")


def test_swin_unet_knows_its_size():
    with pytest.raises(ValueError, match="multiples of 32"):
        timm.create_model("swin_unet_weak", img_size=(224, 100))


# MedMamba, a backbone


def test_medmamba_is_a_backbone():
    model = timm.create_model("medmamba_test").eval()
    x = torch.randn(2, 3, 100, 92)  # odd maps: 25x23, 12x11, 6x5, 3x2
    with torch.inference_mode():
        final, maps = model.forward_intermediates(x)
        assert [tuple(m.shape[1:]) for m in maps] == [(16, 25, 23), (32, 12, 11), (64, 6, 5), (128, 3, 2)]
        torch.testing.assert_close(final, model.forward_features(x))
        torch.testing.assert_close(model(x), model.head.fc(maps[-1].mean(dim=(2, 3))))
        torch.testing.assert_close(
            timm.create_model("medmamba_test", features_only=True).eval()(x)[1].shape, maps[1].shape
        )
        model.reset_classifier(0)
        assert model(x).shape == (2, 128)


# Start from a VMamba


def vanilla(depths=(2, 2, 3, 2), dim=16, **kwargs):
    return timm.create_model("vanilla_vmamba_test", depths=depths, dim=dim, **kwargs)


@pytest.mark.parametrize("name", ["vm_unet_test", "mamba_unet_test"])
def test_encoder_and_decoder_start_from_the_first_blocks_of_a_vmamba(name):
    depths = dict(decoder_depths=(1, 3, 1, 1)) if name.startswith("vm") else {}
    model, source = timm.create_model(name, in_chans=1, **depths), vanilla()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_encoder(model, source.state_dict())
    after, given = model.state_dict(), source.state_dict()
    torch.testing.assert_close(after["encoder.stem.0.weight"], given["stem.0.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(after["encoder.stages.2.blocks.1.mixer.ssm.D"], given["stages.2.blocks.1.mixer.ssm.D"])
    torch.testing.assert_close(
        after["encoder.stages.3.downsample.norm.weight"], given["stages.3.downsample.norm.weight"]
    )
    level = 1 if name.startswith("vm") else 0  # of the decoder, with the width of the encoder's third stage
    key = "blocks.0.mixer.in_proj.weight"
    torch.testing.assert_close(after[f"decoder.stages.{level}.{key}"], given[f"stages.2.{key}"])
    if name == "mamba_unet_test":
        torch.testing.assert_close(after["encoder.norm.weight"], given["norm.weight"])
    up = "decoder.ups.0.expand.weight"
    torch.testing.assert_close(after[up], before[up])


# Names of VMamba's present code in those of its first release.
FIRST_RELEASE = [
    (r"^patch_embed\.0\.", "patch_embed.proj."), (r"^patch_embed\.2\.", "patch_embed.norm."), (r"^classifier\.", ""),
    (r"(blocks\.\d+)\.norm\.", r"\1.ln_1."), (r"\.op\.", ".self_attention."),
]  # fmt: skip


@pytest.mark.parametrize("names", [[], FIRST_RELEASE], ids=["present", "first"])
def test_a_published_vmamba_file_starts_the_encoder(tmp_path, names):
    entry = parity.load("vmamba_vanilla_tiny")
    published = rename({k: torch.from_numpy(v) for k, v in parity.make_state_dict(entry).items()}, names)
    file = tmp_path / "vmamba.pth"
    torch.save({"model": published}, file)
    state = load_encoder(timm.create_model("swin_umamba_d", in_chans=3), file).state_dict()
    expected = vision_ssm.load_checkpoint(timm.create_model("vanilla_vmamba_tiny"), published).state_dict()
    for name, value in expected.items():
        if name.startswith(("stem.", "stages.")):
            torch.testing.assert_close(state[f"encoder.{name}"], value)


def test_swin_umamba_takes_the_bias_of_the_patch_norm_alone():
    model, source = timm.create_model("swin_umamba_test"), vanilla(depths=(1, 1, 2, 1))
    torch.nn.init.normal_(source.stem[1].bias)
    torch.nn.init.normal_(source.stem[1].weight)
    load_encoder(model, source.state_dict())
    torch.testing.assert_close(model.encoder.stem[1].bias, source.stem[1].bias)
    torch.testing.assert_close(model.encoder.stem[1].weight, torch.ones(16))
    torch.testing.assert_close(model.encoder.stages[3].blocks[0].mixer.ssm.D, source.stages[3].blocks[0].mixer.ssm.D)


def test_d_takes_no_patch_embedding_for_grey_images():
    model, source = timm.create_model("swin_umamba_d_test"), vanilla(depths=(1, 1, 2, 1))
    before = model.encoder.stem[0].weight.clone()
    load_encoder(model, source.state_dict())
    torch.testing.assert_close(model.encoder.stem[0].weight, before)
    torch.testing.assert_close(model.encoder.stages[0].blocks[0].mixer.ssm.D, source.stages[0].blocks[0].mixer.ssm.D)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("vm_unet_test", dict(dim=24), r"other shapes: encoder\.stem\.0\.weight"),
        ("vm_unet_test", dict(depths=(1, 1, 1, 1)), r"missing: encoder\.stages\.2\.blocks\.1"),
        ("vm_unet_test", dict(mlp_ratio=4.0), r"unexpected: stages\.0\.blocks\.0\.norm2"),
        ("swin_umamba_test", dict(), r"unexpected: stages\.0\.blocks\.1"),
    ],
)
def test_a_vmamba_that_does_not_fit_is_named(name, source, message):
    with pytest.raises(CheckpointError, match=message):
        load_encoder(timm.create_model(name), vanilla(**source).state_dict())
