"""Loading published checkpoints: every layout in circulation reaches the same weights, and nothing is loaded by half.

The official names and shapes are those of the golden files; `tests/models/test_golden.py` holds what the converted
weights compute. Here each older layout must convert to the same tensors.
"""

import argparse
import functools
import re

import parity
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

import vision_ssm
from vision_ssm import CheckpointError, convert_state_dict, load_checkpoint, model_names

OFFICIAL = {
    "vim_tiny": "vim_tiny_patch16_224",
    "vmamba_tiny_s1l8": "vmamba_tiny_s1l8",
    "vmamba_vanilla_tiny": "vanilla_vmamba_tiny",
    "localmamba_local_vim_tiny": "local_vim_tiny",
    "localmamba_local_vssm_tiny": "local_vmamba_tiny",
}


@functools.cache
def _official(name: str) -> dict[str, torch.Tensor]:
    """Different numbers in every tensor, under the names of a golden file."""
    random = torch.Generator().manual_seed(0)
    return {key: torch.rand(shape, generator=random) for key, shape in parity.load(name)["state_dict"].items()}


@functools.cache
def _model(name: str) -> torch.nn.Module:
    return timm.create_model(name, device="meta")


def _renamed(state_dict: dict, *rules: tuple[str, str]) -> dict:
    for pattern, replacement in rules:
        state_dict = {re.sub(pattern, replacement, name): x for name, x in state_dict.items()}
    return state_dict


def _equal(ours: dict, expected: dict) -> bool:
    return ours.keys() == expected.keys() and all(torch.equal(ours[name], x) for name, x in expected.items())


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names(name):
    """Names, shapes and numbers all arrive; converting again changes nothing."""
    official, model = _official(name), _model(OFFICIAL[name])
    before = dict(official)
    ours = convert_state_dict(official, model)
    assert official.keys() == before.keys() and all(official[k] is before[k] for k in before)  # left as it was
    assert {k: x.shape for k, x in ours.items()} == {k: x.shape for k, x in model.state_dict().items()}
    for total in (torch.sum, torch.max):
        parts = [torch.stack([total(x.double()) for x in state.values()]) for state in (ours, official)]
        torch.testing.assert_close(total(parts[0]), total(parts[1]), rtol=1e-12, atol=0)
    assert _equal(convert_state_dict(ours, model), ours)
    assert _equal(convert_state_dict({"module." + k: x for k, x in ours.items()}, model), ours)


@pytest.mark.parametrize("name", OFFICIAL)
def test_envelopes(name):
    official, model = _official(name), _model(OFFICIAL[name])
    expected = convert_state_dict(official, model)
    average = {k: torch.zeros_like(x) for k, x in official.items()}
    parallel = {f"module.{k}": x for k, x in official.items()}
    for content in (
        {"model": official, "optimizer": {"state": {}}, "epoch": 3},
        {"state_dict": official},
        {"model": parallel, "model_ema": average},
        {"state_dict": {"ema_model": parallel}},
        official | {"note": "text"},
    ):
        assert _equal(convert_state_dict(content, model), expected)


@pytest.mark.parametrize("name", ["vmamba_vanilla_tiny", "localmamba_local_vssm_tiny"])
def test_first_vmamba_names(name):
    """Those of January 2024, still in circulation."""
    official, model = _official(name), _model(OFFICIAL[name])
    old = _renamed(
        official,
        (r"\.norm\.(weight|bias)$", r".ln_1.\1"),
        (r"\.downsample\.ln_1\.", ".downsample.norm."),
        (r"\.attn\.ln_1\.", ".attn.norm."),
        (r"^classifier\.ln_1\.", "norm."),
        (r"^classifier\.head\.", "head."),
        (r"\.op\.", ".self_attention."),
        (r"^patch_embed\.0\.", "patch_embed.proj."),
        (r"^patch_embed\.2\.", "patch_embed.norm."),
    )
    assert "layers.0.blocks.0.ln_1.weight" in old and "layers.0.blocks.0.self_attention.A_logs" in old
    assert {"head.weight", "norm.weight", "patch_embed.proj.weight", "layers.0.downsample.norm.weight"} <= old.keys()
    assert _equal(convert_state_dict(old, model), convert_state_dict(official, model))


@pytest.mark.parametrize("name", ["vmamba_vanilla_tiny", "vmamba_tiny_s1l8"])
def test_single_file_vmamba_names(name):
    """The copy in one file flattens the paths' projections and numbers the parts of the patch merging."""
    official, model = _official(name), _model(OFFICIAL[name])
    new = _renamed(
        official,
        (r"\.x_proj_weight$", ".x_proj.weight"),
        (r"\.dt_projs_weight$", ".dt_projs.weight"),
        (r"\.downsample\.norm\.", ".downsample.1."),
        (r"\.downsample\.reduction\.", ".downsample.2."),
    )
    new = {k: x.flatten(0, 1) if k.endswith(("x_proj.weight", "dt_projs.weight")) else x for k, x in new.items()}
    assert _equal(convert_state_dict(new, model), convert_state_dict(official, model))


def test_linears_stored_as_convolutions():
    """VMamba's channels-first models."""
    official, model = _official("vmamba_tiny_s1l8"), _model("vmamba_tiny_s1l8")
    linear = re.compile(r"(in_proj|out_proj|fc1|fc2|classifier\.head)\.weight$")
    convs = {k: x[:, :, None, None] if linear.search(k) else x for k, x in official.items()}
    assert sum(x.shape[2:] == (1, 1) for x in convs.values()) == 14 * 4 + 1
    assert _equal(convert_state_dict(convs, model), convert_state_dict(official, model))


def test_rope_tables_are_dropped():
    """They are buffers of the published files; here they are computed."""
    for name in ("localmamba_local_vim_tiny", "vim_tiny"):
        official, model = _official(name), _model(OFFICIAL[name])
        tables = {"rope.freqs_cos": torch.ones(196, 192), "rope.freqs_sin": torch.zeros(196, 192)}
        assert _equal(convert_state_dict(official | tables, model), convert_state_dict(official, model))


def test_each_path_of_local_vim_keeps_its_own_A():
    official, model = _official("localmamba_local_vim_tiny"), _model("local_vim_tiny")
    ours = convert_state_dict(official, model)["blocks.3.mixer.ssm.A_log"]
    for k in range(4):
        assert torch.equal(ours[k], official[f"layers.3.mixer.A_log_{k}"])


@pytest.mark.parametrize(("size", "grid"), [(448, (28, 28)), ((160, 256), (10, 16))])
def test_vim_position_table_for_another_image_size(size, grid):
    """Resized bicubically around the class token's row, which stays as it is and in the middle."""
    official = _official("vim_tiny")
    model = timm.create_model("vim_tiny_patch16_224", img_size=size, depth=1)
    own = {k: x for k, x in official.items() if not re.match(r"layers\.([1-9]|\d\d)", k)}
    table = official["pos_embed"][0]
    patches = torch.cat([table[:98], table[99:]]).T.view(1, 192, 14, 14)
    resized = F.interpolate(patches, grid, mode="bicubic", align_corners=False)[0].flatten(1).T
    middle = len(resized) // 2
    expected = torch.cat([resized[:middle], table[98:99], resized[middle:]])[None]
    for content in (own, convert_state_dict(own, timm.create_model("vim_tiny_patch16_224", depth=1, device="meta"))):
        load_checkpoint(model, content)
        torch.testing.assert_close(model.pos_embed.detach(), expected)


def test_local_vim_position_table_for_another_image_size():
    official = {
        k: x for k, x in _official("localmamba_local_vim_tiny").items() if not re.match(r"layers\.([1-9]|\d\d)", k)
    }
    model = timm.create_model("local_vim_tiny", img_size=(96, 320), depth=1, directions="h v- w7 w7-")
    load_checkpoint(model, official)
    patches = official["pos_embed"].transpose(1, 2).view(1, 192, 14, 14)
    expected = F.interpolate(patches, (6, 20), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.pos_embed.detach(), expected)


FAMILIES = ("vim_test", "vmamba_test", "vanilla_vmamba_test", "local_vim_test", "local_vmamba_test")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_own_files(tmp_path, name, suffix):
    """Saved, loaded, the same outputs."""
    first, second = timm.create_model(name).eval(), timm.create_model(name).eval()
    x, file = torch.randn(1, 3, 64, 64), tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save(first.state_dict(), file)
    else:
        safetensors.torch.save_file({k: v.contiguous() for k, v in first.state_dict().items()}, file)
    assert not torch.equal(first(x), second(x))
    assert load_checkpoint(second, file) is second
    assert torch.equal(first(x), second(x))


def test_wrong_model():
    """The error names what does not fit, and the model that would."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(_model("vmamba_small_s1l20"), _official("vmamba_tiny_s1l8"))
    message = str(caught.value)
    assert message.startswith("the state dict does not fit VMamba: missing: stages.2.blocks.8.norm.weight, ")
    assert "and " in message and " more" in message and message.endswith("; it fits vmamba_tiny_s1l8")


def test_wrong_family(tmp_path):
    torch.save({"model": _official("vim_tiny")}, tmp_path / "vim.pth")
    with pytest.raises(
        CheckpointError, match=r"vim\.pth does not fit VMamba: missing: .*unexpected: .*fits vim_tiny_patch16_224"
    ):
        load_checkpoint(_model("vmamba_test"), tmp_path / "vim.pth")


@pytest.fixture
def few_models(monkeypatch):
    """Trying all registered models on a file that fits none takes seconds."""
    monkeypatch.setattr(
        "vision_ssm.registry.model_names", lambda pattern="": ["vim_test", "vmamba_test", "local_vim_test"]
    )


def test_nothing_is_loaded_where_something_does_not_fit(few_models):
    model = timm.create_model("vim_test")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrong = {k: torch.zeros_like(v) for k, v in before.items()} | {
        "norm.weight": torch.zeros(7),
        "more": torch.zeros(1),
    }
    del wrong["blocks.0.norm.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, wrong)
    assert "missing: blocks.0.norm.weight" in str(caught.value) and "unexpected: more" in str(caught.value)
    assert "other shapes: norm.weight is (7,), expected (32,)" in str(caught.value)
    assert "it fits" not in str(caught.value)
    assert _equal(model.state_dict(), before)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "content", [{}, {"a": torch.ones(2)}, {"layers.0.mixer.A_log": torch.ones(2, 3)}, {"model": {}}], ids=str
)
def test_no_checkpoint_of_the_family(few_models, name, content):
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(_model(name), content)


def test_other_models_take_names_as_they_are(few_models):
    model, state_dict = torch.nn.Linear(2, 2, bias=False), {"weight": torch.ones(2, 2)}
    load_checkpoint(model, {"state_dict": state_dict})
    assert torch.equal(model.weight, state_dict["weight"])
    with pytest.raises(CheckpointError, match="does not fit Linear: unexpected: bias"):
        load_checkpoint(model, state_dict | {"bias": torch.ones(2)})
    made = type("Made", (torch.nn.Linear,), {"__module__": "of_no_file"})(2, 2, bias=False)  # as `exec` makes classes
    assert torch.equal(load_checkpoint(made, state_dict).weight, state_dict["weight"])


@pytest.mark.parametrize("name", FAMILIES)
def test_keep_head(few_models, name):
    """For fine-tuning with other classes: all but the classifier is loaded."""
    first, second = timm.create_model(name), timm.create_model(name, num_classes=7)
    with pytest.raises(CheckpointError, match=r"other shapes: head\."):
        load_checkpoint(second, first.state_dict())
    head = {k: v.clone() for k, v in second.state_dict().items() if k.startswith("head.")}
    load_checkpoint(second, first.state_dict(), keep_head=True)
    for k, v in second.state_dict().items():
        assert torch.equal(v, head[k] if k in head else first.state_dict()[k])
    headless = timm.create_model(name, num_classes=0)
    load_checkpoint(headless, first.state_dict(), keep_head=True)
    assert torch.equal(headless.state_dict()["norm.weight"], first.state_dict()["norm.weight"])


def _pretrained(name: str, file, custom_load: bool, **kwargs):
    overlay = dict(file=str(file), custom_load=custom_load)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("custom_load", [True, False])
def test_pretrained_through_timm(tmp_path, name, custom_load):
    """`custom_load` reads the file without running code of it; without, timm reads it and uses the conversion alone."""
    first = timm.create_model(name)
    file = tmp_path / "model.pth"
    torch.save({"model": first.state_dict()}, file)
    state = first.state_dict()
    assert _equal(_pretrained(name, file, custom_load).state_dict(), state)

    classes = _pretrained(name, file, custom_load, num_classes=7)
    assert classes.num_classes == 7
    for k, v in classes.state_dict().items():
        assert torch.equal(v, state[k]) != k.startswith("head.")

    features = _pretrained(name, file, custom_load, num_classes=0)
    assert all(torch.equal(v, state[k]) for k, v in features.state_dict().items())

    conv = f"{first.pretrained_cfg['first_conv']}.weight"
    gray = _pretrained(name, file, custom_load, in_chans=1).state_dict()
    torch.testing.assert_close(gray[conv], state[conv].sum(1, keepdim=True))
    six = _pretrained(name, file, custom_load, in_chans=6).state_dict()
    torch.testing.assert_close(six[conv], torch.cat([state[conv]] * 2, 1) / 2)
    assert all(torch.equal(v, state[k]) for k, v in six.items() if k != conv)


def test_pretrained_from_an_official_file(tmp_path):
    """With a config object inside, as training scripts save it."""
    official = _official("vim_tiny")
    torch.save({"model": official, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "vim.pth")
    model = _pretrained("vim_tiny_patch16_224", tmp_path / "vim.pth", True, num_classes=10, in_chans=1)
    expected = convert_state_dict(official, _model("vim_tiny_patch16_224"))
    state = model.state_dict()
    assert model.head.weight.shape == (10, 192) and state["patch_embed.proj.weight"].shape == (192, 1, 16, 16)
    assert all(torch.equal(state[k], x) for k, x in expected.items() if k.startswith("blocks."))


def test_pretrained_refuses_a_file_of_another_model(tmp_path):
    torch.save(timm.create_model("vim_test").state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth does not fit VMamba.*it fits vim_test"):
        _pretrained("vmamba_test", tmp_path / "model.pth", True)


def test_pretrained_features(tmp_path):
    """A feature pyramid of pretrained weights."""
    first = timm.create_model("vmamba_test").eval()
    torch.save(first.state_dict(), tmp_path / "model.pth")
    features = _pretrained("vmamba_test", tmp_path / "model.pth", True, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    ours, expected = features(x), first.forward_intermediates(x, intermediates_only=True)
    assert len(ours) == 4 and all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_every_published_model_says_where_its_file_is():
    """With a file, timm must leave reading it to this package, which runs no code of it."""
    for name in model_names():
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.custom_load == bool(cfg.url) and cfg.license and cfg.origin_url
    assert vision_ssm.CheckpointError is CheckpointError
