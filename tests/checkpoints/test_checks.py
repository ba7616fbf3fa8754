"""What a state dict's values are: kinds of numbers and finite values, through every door; and what an error advises."""

import json
import os
import socket

import pytest
import timm
import torch
from torch import nn

import vision_ssm.checkpoints.fitting as fitting
from vision_ssm import CheckpointError, load_checkpoint, model_names
from vision_ssm.checkpoints import read
from vision_ssm.medical import load_encoder


def _state(name: str = "vmamba_test", **kwargs) -> dict[str, torch.Tensor]:
    return timm.create_model(name, **kwargs).state_dict()


KINDS = [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]


def _load_encoder(source) -> None:
    load_encoder(timm.create_model("vm_unet_test"), source)


def _load_pretrained(source) -> None:
    overlay = dict(file=str(source), custom_load=True)
    timm.create_model("vmamba_test", pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_kinds_of_numbers(tmp_path, kind, suffix):
    path = tmp_path / f"model.{suffix}"
    state = {name: value.to(kind) for name, value in _state().items()}
    if suffix == "pth":
        torch.save({"model": state}, path)
    else:
        import safetensors.torch

        safetensors.torch.save_file(state, path)
    words = rf"model\.{suffix} cannot be loaded: stem\.0\.weight is {str(kind)[6:]}, expected float32"
    for load in (lambda path: load_checkpoint(timm.create_model("vmamba_test"), path), _load_pretrained):
        with pytest.raises(CheckpointError, match=words):
            load(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_become_the_models(kind):
    state = {name: value.to(kind) for name, value in _state().items()}
    model = load_checkpoint(timm.create_model("vmamba_test"), state)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[name].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value):
    state = _state()
    name = list(state)[5]
    state[name].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=rf"{name} has values that are infinite or no numbers"):
        load_checkpoint(timm.create_model("vmamba_test"), state)
    state[name] = torch.full(state[name].shape, 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=rf"{name} has values beyond float32"):
        load_checkpoint(timm.create_model("vmamba_test"), state)


class _Own(nn.Module):
    """A network of one's own: counters, masks of -inf, booleans."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
        self.register_buffer("on", torch.tensor([True, False]))
        self.register_buffer("phase", torch.ones(1, dtype=torch.complex64))


def test_buffers_of_other_kinds():
    """What a model itself holds is no fault: an infinite mask, booleans, counters that another tool made floats."""
    model = _Own()
    load_checkpoint(model, _Own().state_dict())
    counted = _Own().state_dict() | {"norm.num_batches_tracked": torch.tensor(7.0, dtype=torch.bfloat16)}
    assert load_checkpoint(model, counted).norm.num_batches_tracked == 7
    wrong = {"norm.num_batches_tracked": torch.tensor(0.5), "on": torch.ones(2), "phase": torch.ones(1)}
    for name, value in wrong.items():
        with pytest.raises(CheckpointError, match=rf"{name} is float32"):
            load_checkpoint(model, _Own().state_dict() | {name: value})
    with pytest.raises(CheckpointError, match=r"norm\.weight has no data"):
        load_checkpoint(model, _Own().state_dict() | {"norm.weight": torch.ones(2, device="meta")})


def test_an_encoder_is_checked_too():
    state = _state("vanilla_vmamba_test")
    name = "stages.0.blocks.0.norm.weight"
    for value, words in ((state[name] * float("nan"), "no numbers"), (state[name].to(torch.int8), "is int8")):
        with pytest.raises(CheckpointError, match=rf"{name} .*{words}"):
            _load_encoder({f"model.{key}": one for key, one in (state | {name: value}).items()})


def test_names_and_values_of_other_types(tmp_path):
    model = timm.create_model("vmamba_test")
    for names in ([0, 1], [b"a", b"b"], [("a", 1)], [None], [1.5]):
        torch.save({name: torch.ones(2) for name in names}, tmp_path / "n.pth")
        with pytest.raises(CheckpointError, match=r"n\.pth cannot be loaded: the name .* of a tensor is of type \w+"):
            load_checkpoint(model, tmp_path / "n.pth")
    state = _state()
    for value in (None, 1.5, [1.0], state["stem.0.weight"].numpy(), "text"):
        torch.save(state | {"stem.0.weight": value}, tmp_path / "n.pth")
        with pytest.raises(CheckpointError, match=r"missing: stem\.0\.weight.*no tensors: stem\.0\.weight \(\w+\)"):
            load_checkpoint(model, tmp_path / "n.pth")
    inner: dict = {}
    inner["model"] = inner
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(model, inner)


def test_what_is_no_file(tmp_path):
    """Each is said at once; a named pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(tmp_path)
        one.bind("socket")
    for source, words in (
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path / "socket", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        ("", "path of the checkpoint is empty"),
        (tmp_path / "loop", "cannot be read: "),
        ("a\0b", "cannot be read: "),
        ("x" * 5000, "cannot be read: "),
        (None, "not a NoneType"),
        (3, "not a int"),
        (b"x", "not a bytes"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read(source)
    for source, words in ((tmp_path / "link", "a link to a file"), (tmp_path, "it is a folder")):
        with pytest.raises(FileNotFoundError, match=rf"no checkpoint at {source}: {words}"):
            read(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    torch.save({}, tmp_path / "model.pth")
    (tmp_path / "model.pth").chmod(0)
    with pytest.raises(CheckpointError, match=r"model\.pth cannot be read as a checkpoint: Permission denied"):
        read(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.model.", "encoder.", "module.student.", "_orig_mod.model."]
)
def test_a_prefix_of_all_names_is_taken_off(prefix):
    state = _state("vim_test")
    model = load_checkpoint(timm.create_model("vim_test"), {"state_dict": {prefix + k: v for k, v in state.items()}})
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize("prefix", ["model.", "student.backbone."])
def test_a_prefix_beside_other_names_is_named(prefix):
    state = _state("vim_test")
    content = {prefix + name: value for name, value in state.items()} | {"loss.weight": torch.ones(3)}
    with pytest.raises(
        CheckpointError, match=rf"does not fit VisionMamba.*below the prefix '{prefix}' are (\d+) of .* \1 "
    ):
        load_checkpoint(timm.create_model("vim_test"), content)


def test_averaged_and_compiled_models():
    state = _state("vim_test")
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in state.items()}
    inside = {name.replace("blocks.", "blocks._orig_mod.", 1): value for name, value in state.items()}
    for content in (averaged, inside, {"model": dict(name="vim"), "state_dict": state}, {"ema": averaged}):
        model = load_checkpoint(timm.create_model("vim_test"), content)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_heads():
    """A model without a head takes a classifier's weights; other classes are told of `keep_head`."""
    state = _state("vmamba_test", num_classes=7)
    model = load_checkpoint(timm.create_model("vmamba_test", num_classes=0), state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="all but the head fits: `keep_head=True`"):
        load_checkpoint(timm.create_model("vmamba_test", num_classes=5), state)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(timm.create_model("vim_test"), state)
    assert "keep_head" not in str(caught.value)


def test_modules_that_are_called_heads():
    """In a network of one's own it is a part, and says nothing of names."""
    model = nn.Module()
    model.heads = nn.Linear(2, 2)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    assert not load_checkpoint(model, state).heads.weight.any()
    for more in ("head.weight", "other"):
        with pytest.raises(CheckpointError, match=f"unexpected: {more}"):
            load_checkpoint(model, state | {more: torch.ones(1)})


# The model that a checkpoint is for


def test_every_model_has_its_number_of_entries():
    assert fitting.recorded_sizes().keys() == set(model_names()), "run python tools/model_sizes.py"


@pytest.mark.parametrize("name", [name for name in model_names() if name.endswith("_test")] + ["vim_tiny_patch16_224"])
def test_numbers_of_entries(name):
    """Those of the small models; `tools/model_sizes.py --check` compares all."""
    fixed, each, squared = fitting.recorded_sizes()[name]
    for classes in (5, 7):
        state = timm.create_model(name, num_classes=classes, device="meta").state_dict()
        assert fitting.count_entries(state) == fixed + classes * each + classes**2 * squared


def test_the_model_is_found_without_building_all(monkeypatch):
    built, create = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: built.append(name) or create(name, **kwargs))
    for source, classes in (("vim_test", 1000), ("local_vim_test", 7), ("vmamba_test", 10)):
        state = create(source, num_classes=classes).state_dict()
        with pytest.raises(CheckpointError, match=f"it fits {source}$"):
            load_checkpoint(create("medmamba_test"), {"model": state})
    assert 3 <= len(built) <= 12
    built.clear()
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(create("vim_test"), {"a": torch.ones(3)})
    assert built == []
    assert json.dumps(fitting.recorded_sizes())
