"""Reading checkpoint files: no code of theirs runs, and what surrounds the weights does not matter."""

import argparse
import collections
import datetime
import functools
import io
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from vision_ssm.checkpoints import read, unwrap

WEIGHTS = {
    "a.weight": torch.arange(6.0).view(2, 3).T,
    "a.half": torch.ones(3, dtype=torch.bfloat16),
    "a.count": torch.tensor(7),
}


def _equal(ours, expected=WEIGHTS) -> bool:
    return list(ours) == list(expected) and all(torch.equal(ours[name], x) for name, x in expected.items())


class Config:
    """A class that the reader does not know."""

    def __init__(self, **kwargs):
        self.__dict__ |= kwargs


class ConfigDict(dict):
    """A config library's dictionary."""


class ConfigList(list):
    pass


class Immutable(tuple):
    def __getnewargs_ex__(self):
        return (tuple(self),), {}


class Touch:
    """Unpickled, it makes a file: what a malicious checkpoint would do."""

    def __init__(self, path, function=os.system):
        self.path, self.function = path, function

    def __reduce__(self):
        shell = self.function is os.system
        return self.function, (f"touch {self.path}" if shell else f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_code_in_a_file_is_not_run(tmp_path, function, zip_format):
    marker, file = tmp_path / "marker", tmp_path / "model.pth"
    evil = Touch(marker, function)
    torch.save({"evil": evil, "model": WEIGHTS | {"evil": evil}}, file, _use_new_zipfile_serialization=zip_format)
    content = read(file)
    assert not marker.exists()
    assert _equal(unwrap(content))
    torch.load(file, weights_only=False)  # which is no way to read it
    assert marker.exists()


def test_a_bare_pickle_is_not_run(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "model.pth"
    file.write_bytes(pickle.dumps(Touch(marker)))
    with pytest.raises(ValueError, match=r"model\.pth cannot be read as a checkpoint"):
        read(file)
    assert not marker.exists()


def test_a_scripted_module_is_refused(tmp_path):
    """Its file holds code instead of weights."""
    file = tmp_path / "model.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    with pytest.raises(ValueError, match=r"model\.pt"):
        read(file)


SURROUNDINGS = {
    "namespace": argparse.Namespace(lr=1e-3, model="vim", nested=argparse.Namespace(a=[1, 2])),
    "object": Config(a=1, tensor=torch.ones(2)),
    "dictionary": ConfigDict(a=1, b=ConfigDict(c=ConfigList([1, ConfigDict()]))),
    "tuple": Immutable((1, 2)),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "function": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "class": torch.nn.GELU,
    "module": torch.nn.Linear(2, 2),
    "generator": np.random.RandomState(0).get_state(),
    "number": np.float64(0.5),
    "array": np.arange(3),
    "date": datetime.datetime(2024, 1, 1),
    "set": {1, 2},
    "key": {Config: 1, Immutable((1,)): 2},
    "dtype": torch.float16,
    "bytes": io.BytesIO(b"x"),
}


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("kind", SURROUNDINGS)
def test_what_else_a_file_holds_is_ignored(tmp_path, kind, zip_format):
    file = tmp_path / "model.pth"
    content = {"args": SURROUNDINGS[kind], "model": WEIGHTS, "epoch": 3, "more": [SURROUNDINGS[kind]]}
    torch.save(content, file, _use_new_zipfile_serialization=zip_format)
    content = read(file)
    assert _equal(unwrap(content)) and content["epoch"] == 3
    assert all(content["model"][name].dtype == x.dtype for name, x in WEIGHTS.items())


def test_a_trained_model_with_its_optimizer(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    content = dict(
        model=model.state_dict(), optimizer=optimizer.state_dict(), config=Config(), rng=torch.get_rng_state()
    )
    torch.save(content, tmp_path / "model.pth")
    assert _equal(unwrap(read(tmp_path / "model.pth")), model.state_dict())


def test_parameters(tmp_path):
    """A state dict may hold parameters instead of tensors, also beside a config."""
    parameters = {name: torch.nn.Parameter(x, requires_grad=False) for name, x in WEIGHTS.items()}
    for name, content in (("plain", parameters), ("config", dict(model=parameters, config=Config()))):
        torch.save(content, tmp_path / name)
        assert _equal(unwrap(read(tmp_path / name)))


def test_safetensors(tmp_path):
    weights = {name: x.contiguous() for name, x in sorted(WEIGHTS.items())}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    ours = read(tmp_path / "model.safetensors")
    assert sorted(ours) == list(weights) and all(torch.equal(ours[name], x) for name, x in weights.items())


def test_sources(tmp_path, monkeypatch):
    """A path, its text, a URL, or a mapping, which is returned as it is."""
    file = tmp_path / "model.pth"
    torch.save(WEIGHTS, file)
    assert _equal(read(file)) and _equal(read(str(file)))
    assert read(WEIGHTS) is WEIGHTS
    asked = []
    monkeypatch.setattr("vision_ssm.checkpoints.reading.download", lambda url: asked.append(url) or file)
    assert _equal(read("https://example.org/model.pth"))
    assert asked == ["https://example.org/model.pth"]


def test_no_file(tmp_path):
    for path in (tmp_path / "model.pth", tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {path}"):
            read(path)


def _damaged(tmp_path):
    torch.save(dict(model=WEIGHTS, args=argparse.Namespace()), tmp_path / "zip.pth")
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"a": torch.ones(9)}, tmp_path / "model.safetensors")
    for file in ("zip.pth", "old.pth", "model.safetensors"):
        whole = (tmp_path / file).read_bytes()
        for name, content in (("empty", b""), ("short", whole[: len(whole) // 2]), ("noise", bytes(range(256)) * 9)):
            path = tmp_path / f"{name}-{file}"
            path.write_bytes(content)
            yield path


def test_damaged_files(tmp_path):
    for path in _damaged(tmp_path):
        with pytest.raises(ValueError, match=f"{path} cannot be read as a checkpoint: .+"):
            read(path)


@pytest.mark.parametrize(
    "content", [torch.ones(2), [1, 2], None, Config(), torch.nn.Linear(1, 1)], ids=lambda x: type(x).__name__
)
def test_a_file_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth holds a \w+: expected a checkpoint with a state dict"):
        read(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "envelope", ["model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "ema_model", "module"]
)
def test_envelopes(envelope):
    assert _equal(unwrap({envelope: WEIGHTS, "epoch": 1, "mean": torch.ones(3)}))
    assert _equal(unwrap({"state_dict": {envelope: {"module." + name: x for name, x in WEIGHTS.items()}}}))
    assert _equal(unwrap({envelope: {"module._orig_mod." + name: x for name, x in WEIGHTS.items()}}))


def test_weights_come_before_their_average():
    average = {name: torch.zeros_like(x) for name, x in WEIGHTS.items()}
    assert _equal(unwrap({"model_ema": average, "model": WEIGHTS, "ema_model": average}))
    assert _equal(unwrap({"state_dict_ema": average, "state_dict": WEIGHTS}))


def test_prefixes_and_other_entries():
    parallel = {f"module.{name}": x for name, x in WEIGHTS.items()}
    assert _equal(unwrap(parallel))
    assert _equal(unwrap(WEIGHTS | {"note": "text", "epoch": 3, "list": [torch.ones(1)]}))
    partly = WEIGHTS | {"module.b": torch.ones(1)}  # a part of the model that is called so
    assert list(unwrap(partly)) == list(partly)
    assert unwrap({}) == {} and unwrap({"model": None}) == {}


def test_the_network_of_a_segmentor():
    """A run's checkpoint holds it under a name of its own, beside what its loss keeps."""
    weights = {"network.head.weight": torch.ones(2), "network.head.bias": torch.ones(1), "loss.weight": torch.ones(3)}
    assert unwrap({"state_dict": weights, "meta": {}}).keys() == {"head.weight", "head.bias"}
    assert unwrap({"network.head.weight": torch.ones(2), "stem.weight": torch.ones(2)}).keys() == {
        "network.head.weight", "stem.weight",
    }  # fmt: skip
