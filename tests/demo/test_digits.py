import pytest
import torch

pytest.importorskip("sklearn")

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.demo.digits import Digits, Recipe, Run, create, evaluate, load_digits, train
from vision_ssm.errors import InputError


@pytest.fixture(scope="module")
def few() -> Digits:
    """A small part of the digits, for speed."""
    data = load_digits()
    return Digits(data.train_images[:96], data.train_labels[:96], data.test_images[:64], data.test_labels[:64])


def _weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def test_split_keeps_a_third_apart():
    data = load_digits()
    assert len(data.test_labels) == 599
    assert len(data.train_labels) == 1198
    train_rows = {image.numpy().tobytes() for image in data.train_images}
    shared = sum(image.numpy().tobytes() in train_rows for image in data.test_images)
    assert shared == 0
    assert data.train_images.min() == -1
    assert data.train_images.max() == 1


def test_same_seed_same_bits(few, tmp_path):
    recipe = Recipe(epochs=2)
    runs = [Run(recipe, few, tmp_path / str(i)) for i in range(2)]
    for run in runs:
        list(train(run))
    assert runs[0].history == runs[1].history
    assert all(torch.equal(a, b) for a, b in zip(*map(_weights, runs), strict=True))


def test_a_killed_run_ends_as_if_it_had_not_been(few, tmp_path):
    recipe = Recipe(epochs=3)
    whole = Run(recipe, few, tmp_path / "whole")
    list(train(whole))
    killed = Run(recipe, few, tmp_path / "killed")
    next(train(killed))
    killed.train_epoch()  # lost: the process dies before the checkpoint
    resumed = Run(recipe, few, tmp_path / "killed")
    assert resumed.resume()
    assert resumed.epoch == 1
    list(train(resumed))
    assert resumed.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(_weights(resumed), _weights(whole), strict=True))


def test_checkpoint_of_another_recipe_is_refused(few, tmp_path):
    next(train(Run(Recipe(epochs=2), few, tmp_path)))
    with pytest.raises(ValueError, match="another run"):
        Run(Recipe(epochs=2, lr=1e-4), few, tmp_path).resume()


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("recipe", None, "is of another run"),
        ("model", 3, "`model` is not a state dict"),
        ("model", {"x": 1}, "`model` is not a state dict"),
        ("model", {}, "missing: "),
        ("optimizer", 3, "`optimizer` is not"),
        ("optimizer", {"state": {}}, "`optimizer` is not"),
        ("optimizer", {"state": {0: 3}}, "`optimizer` is not"),
        ("history", {}, "`history` is not"),
        ("history", [], "`history` is not"),
        ("history", [dict(loss=1)], "`history` is not"),
        ("history", [dict(loss=1.0, accuracy=0.5)] * 3, "`history` is not"),
    ],
)
def test_a_part_of_another_kind_is_named(part, value, why, few, tmp_path):
    run = Run(Recipe(epochs=2), few, tmp_path)
    next(train(run))
    content = torch.load(run.checkpoint, weights_only=True)
    torch.save(content | {part: value}, run.checkpoint)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pt .*{why}"):
        Run(Recipe(epochs=2), few, tmp_path).resume()


def test_moments_of_another_shape_are_refused(few, tmp_path):
    run = Run(Recipe(epochs=2), few, tmp_path)
    next(train(run))
    content = torch.load(run.checkpoint, weights_only=True)
    content["optimizer"]["state"][3]["exp_avg"] = torch.zeros(2, 2, 2)
    torch.save(content, run.checkpoint)
    with pytest.raises(CheckpointError, match="parameters of these shapes"):
        Run(Recipe(epochs=2), few, tmp_path).resume()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", {"x": 1}, [1], {0: 1}])
def test_files_that_are_no_checkpoint_are_refused(content, few, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        Run(Recipe(), few, tmp_path).resume()


def test_a_training_that_diverges_ends(few, tmp_path):
    run = Run(Recipe(epochs=3, lr=1e6), few, tmp_path)
    with pytest.raises(InputError, match=r"diverged in epoch .*smaller learning rate"):
        for _ in train(run):
            pass
    assert all(epoch["loss"] < float("inf") for epoch in run.history[:-1])


@pytest.mark.parametrize("model", ["vmamba_test", "vim_test", "local_vim_test", "vanilla_vmamba_test"])
def test_any_family_takes_the_digits(model, few):
    net = create(Recipe(model=model))
    assert evaluate(net, few.test_images).shape == (64,)


def test_learns(tmp_path):
    """A quarter of the full schedule on all data is well above chance; the full one reaches 99 %."""
    run = Run(Recipe(epochs=5, lr=3e-3), load_digits(), tmp_path)
    assert list(train(run))[-1]["accuracy"] > 0.85
