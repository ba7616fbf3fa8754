"""What is said before anything is built or read: folders, launchers, precision, names that are empty."""

import pytest
import torch

pytest.importorskip("mmengine")
from engine.tiny import config, files, last, same
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from torch import nn

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import ConfigError, load_network, train
from vision_ssm.engine.weights import keeping_heads

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "nul\0", "/proc/nothing"])
def test_folders_that_cannot_be_are_named(name, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="work_dir") as caught:
        train(config(), name if name.startswith("/") else f"{tmp_path}/{name}")
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("launcher", ["mpi", "torchrun", ""])
def test_unknown_launchers(launcher, tmp_path):
    with pytest.raises(ConfigError, match="expected none, pytorch, slurm"):
        train(config(), tmp_path, launcher=launcher)


def test_launcher_without_its_processes(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"RANK, .*: start the command with torchrun"):
        train(config(), tmp_path, launcher="pytorch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 works there")
@pytest.mark.parametrize("how", ["amp", "config"])
def test_float16_needs_a_gpu(how, tmp_path):
    cfg = config(steps=6)
    if how == "config":
        cfg.optim_wrapper.type = "AmpOptimWrapper"
    with pytest.raises(ConfigError, match=r"fp16.* needs a GPU.*bf16"):
        train(cfg, tmp_path, amp="fp16" if how == "amp" else None)


def test_empty_names_and_other_precisions(tmp_path):
    with pytest.raises(ConfigError, match="empty name"):
        train(config(), tmp_path, resume="")
    with pytest.raises(ConfigError, match="expected 'bf16' or 'fp16'"):
        train(config(), tmp_path, amp="int8")
    with pytest.raises(ConfigError, match="`keep_head` needs `load_from`"):
        train(config(), tmp_path, keep_head=True)


def test_what_is_built_late_is_named_too(tmp_path):
    with pytest.raises(ConfigError, match="learning rate"):
        train(config(**{"optim_wrapper.optimizer.lr": -1.0}), tmp_path)


# Other classes


@MODELS.register_module(force=True)
class TinyClasses(MODELS.get("TinyModel")):
    """With other numbers of classes."""

    def __init__(self, classes: int = 2, width: int = 8):
        super().__init__(width)
        self.head = nn.Linear(width, classes)


@HOOKS.register_module(force=True)
class Start(Hook):
    """Notes the weights before the first step."""

    def before_train(self, runner):
        Start.seen = {name: value.clone() for name, value in runner.model.state_dict().items()}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    train(config(steps=12), folder)
    return folder / "iter_12.pth"


def of(classes, path, **changes):
    cfg = config(steps=12, **{"model.type": "TinyClasses", "model.classes": classes, "load_from": str(path)}, **changes)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type="Start")]
    return cfg


@pytest.mark.parametrize("how", ["argument", "key"])
def test_other_classes_keep_the_head(how, of_two, tmp_path):
    cfg = of(3, of_two, **({} if how == "argument" else {"keep_head": True}))
    train(cfg, tmp_path, keep_head=how == "argument")
    weights = torch.load(of_two, weights_only=True)["state_dict"]
    assert Start.seen["head.weight"].shape == (3, 8)
    assert all(same(Start.seen[name], value) for name, value in weights.items() if not name.startswith("head."))
    assert last(tmp_path)["state_dict"]["head.bias"].shape == (3,)
    train(of(3, of_two), tmp_path, resume=True, keep_head=True, options={"train_cfg.max_iters": 13})  # restarted


def test_other_classes_are_an_error_that_says_how(of_two, tmp_path):
    with pytest.raises(CheckpointError, match=r"head\.weight is \(2, 8\), expected \(3, 8\).*`keep_head=True`.* head"):
        train(of(3, of_two), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        train(of(3, of_two, **{"model.width": 16}), tmp_path)
    assert "keep_head" not in str(caught.value)
    with pytest.raises(CheckpointError, match="expected"):  # more than the head differs
        train(of(3, of_two, **{"model.width": 16}), tmp_path, keep_head=True)
    assert not files(tmp_path)


def test_heads_of_any_network():
    def net(classes, width=4):
        return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ConvTranspose2d(width, classes, 2))

    state = net(3).state_dict()
    rest, layers = keeping_heads(state, net(2))
    assert layers == ["2"] and same(rest["0.weight"], state["0.weight"]) and rest["2.weight"].shape == (4, 2, 2, 2)
    assert keeping_heads(state, net(3))[1] == []
    one = net(2)
    load_network(one, state, keep_head=True)
    assert same(one[0].weight.data, state["0.weight"])
    with pytest.raises(CheckpointError, match="keep_head"):
        load_network(net(2), state)
    with pytest.raises(CheckpointError, match=r"0\.weight|2\.weight"):
        load_network(net(2, 8), state, keep_head=True)


def test_named_heads_are_left_even_if_they_fit():
    class Named(nn.Module):
        heads = ("out.",)

        def __init__(self):
            super().__init__()
            self.body, self.out = nn.Linear(2, 2), nn.Linear(2, 2)

    rest, layers = keeping_heads(Named().state_dict(), one := Named())
    assert layers == ["out"] and same(rest["out.weight"], one.out.weight.data)
    assert not same(rest["body.weight"], one.body.weight.data)
