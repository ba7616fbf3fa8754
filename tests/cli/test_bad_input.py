"""Odd arguments, files and folders of every command: one line and a status, in little time and memory."""

import json
import os
import signal
from pathlib import Path

import pytest
import timm
import torch
from nnunet.plan import plans
from PIL import Image

from vision_ssm.cli import main

CLASSES = ("--model", "vmamba_test", "--num-classes", "2")
DATA = ("evaluate", "--data", "set", *CLASSES, "--workers", "0")
PLANS = ("nnunet-plans", "plans.json", "--network", "umamba_bot")
DIGITS = ("train-digits", "--epochs", "1", "-o")
NAMES = ("none", "folder", "pipe", "dangling", "loop", "text", "text/under", "/dev/null", "/dev/zero", "\x1b[31mred",
         "a\nb", "x" * 300, "x/" * 3000, os.fsdecode(b"caf\xe9"), "", "\0", "..")  # fmt: skip
NUMBERS = ("", "0", "-1", "1.5", "nan", "inf", "0x10", "9" * 5000, "1" * 30, "true")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """A folder with one of each; nothing may take longer than 30 seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "alarm", signal.alarm)
    for name in "ab":
        Path("set/val", name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(f"set/val/{name}/0.png")
    Path("folder").mkdir()
    Path("text").write_text("x")
    os.mkfifo("pipe")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    Path("plans.json").write_text(json.dumps(plans()))
    torch.save(timm.create_model("vmamba_test", num_classes=2).state_dict(), "w.pth")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _check(capsys, *argv: str) -> str:
    """Run bad arguments; returns the line. A message has no inner words and changes no terminal."""
    assert main([*argv]) == 2, argv
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("vision-ssm: warning: ")]
    assert len(errors) == 1 and errors[0].startswith("vision-ssm: error: "), (argv, errors)
    assert errors[0].isprintable() and "Traceback" not in errors[0] and "Error:" not in errors[0], (argv, errors)
    assert len(errors[0]) < 5000
    return errors[0]


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "NAME", *CLASSES),
        ("predict", "set/val/a/0.png", *CLASSES, "--checkpoint", "NAME"),
        ("predict", "set/val/a/0.png", *CLASSES, "--labels", "NAME"),
        ("predict", "set/val/a/0.png", "--model", "NAME"),
        ("convert", "NAME", *CLASSES, "-o", "o.safetensors"),
        ("convert", "w.pth", *CLASSES, "-o", "NAME"),
        ("convert", "w.pth", *CLASSES, "-o", "NAME/o.safetensors"),
        ("evaluate", "--data", "NAME", *CLASSES),
        (*DATA, "--split", "NAME"),
        ("info", "NAME"),
        ("list", "NAME"),
        ("list", "--task", "NAME"),
        ("nnunet-plans", "NAME", "--network", "umamba_bot"),
        ("nnunet-plans", "plans.json", "--network", "NAME"),
        (*PLANS, "--configurations", "NAME"),
        (*PLANS, "-o", "NAME"),
        ("train-digits", "--model", "NAME"),
        ("benchmark", "NAME"),
        ("benchmark", "networks", "--cases", "NAME"),
        ("benchmark", "networks", "--mamba-ssm", "NAME", "--cases", "none"),
        ("NAME",),
    ],
    ids=" ".join,
)
def test_names(command, capsys):
    for name in NAMES:
        if command[:2] == ("list", "NAME") and name == "":
            continue  # all
        if (command[-1] == "NAME/o.safetensors" and name in ("..", "folder")) or (command[-1], name) == ("NAME", ".."):
            continue  # a place like any other
        _check(capsys, *(part.replace("NAME", name) for part in command))


@pytest.mark.parametrize(
    "option",
    [
        ("predict", "set/val/a/0.png", "--model", "vmamba_test", "--num-classes"),
        ("predict", "set/val/a/0.png", *CLASSES, "--top-k"),
        *((*DATA, option) for option in ("--batch-size", "--img-size", "--limit")),
        *(("train-digits", option) for option in ("--epochs", "--batch-size")),
        *(("benchmark", "networks", option) for option in ("--threads", "--rounds", "--seconds", "--patch")),
    ],
    ids=lambda argv: f"{argv[0]} {argv[-1]}",
)
def test_numbers(option, capsys):
    for number in NUMBERS:
        assert "expected" in _check(capsys, *option, number)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ((*DATA[:-1], "1000000000"), "from 0 to 1024"),
        ((*DATA[:-1], "-1"), "from 0 to 1024"),
        ((*DATA, "--img-size", "1000000000"), "from 1 to 8192"),
        (("predict", "text", "--model", "vim_test", "--num-classes", "1000000000"), "from 1 to 1000000"),
        (("benchmark", "networks", "--threads", "1000000000"), "from 1 to"),
        (("benchmark", "networks", "--limit-gib", "nan"), "above 0"),
        (("train-digits", "--lr", "inf"), "above 0"),
        (("train-digits", "--lr", "0"), "above 0"),
        (("train-digits", "--seed", "-1"), "from 0"),
        (("train-digits", "--seed", "1" * 20), "from 0"),
    ],
)
def test_numbers_out_of_range(argv, why, capsys):
    assert why in _check(capsys, *argv)


def test_large_numbers_that_mean_all(prints):
    prints("predict", "set/val/a/0.png", *CLASSES, "--top-k", "1000000000")
    prints(*DATA, "--batch-size", "1000000000", "--limit", "1000000000")
    prints(*DATA[:-1], "1000", "--batch-size", "2")  # one batch, and so one process


def test_folders_of_results(capsys):
    for name in ("text", "text/under", "pipe", "loop", "x" * 300, "", "\0"):
        _check(capsys, *DIGITS, name)
    for name in ("checkpoint.pt", "result.json", "report.png"):
        Path(f"taken-{name}/{name}").mkdir(parents=True)
        assert "is a folder" in _check(capsys, *DIGITS, f"taken-{name}")


def test_inputs_are_never_written_over(capsys):
    before = Path("w.pth").read_bytes(), Path("plans.json").read_bytes()
    Path("w.safetensors").symlink_to("w.pth")
    assert "written over" in _check(capsys, "convert", "w.pth", *CLASSES, "-o", "w.safetensors", "--force")
    assert "written over" in _check(capsys, *PLANS, "-o", "plans.json", "--force")
    assert "written over" in _check(capsys, *DATA, "-o", "set/val/a/0.png")
    assert "written over" in _check(capsys, *DATA, "--checkpoint", "w.pth", "-o", "w.pth")
    Path("set/map.json").write_text('{"a": 0, "b": 1}')
    assert "written over" in _check(capsys, *DATA, "--class-map", "set/map.json", "-o", "set/map.json")
    assert before == (Path("w.pth").read_bytes(), Path("plans.json").read_bytes())


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", "NaN", "", "[" * 100_000, "\xff", '{"plans_name": 1, "configurations": 3}']
)
def test_files_that_are_no_plans(text, capsys):
    Path("p.json").write_bytes(text.encode("latin1"))
    assert "p.json" in _check(capsys, "nnunet-plans", "p.json", "--network", "umamba_bot")


def test_random_weights_are_asked_for(capsys, prints):
    image = "set/val/a/0.png"
    for command in (("predict", image), ("evaluate", "--data", "set")):
        line = _check(capsys, *command, "--model", "vim_tiny_patch16_224", "--num-classes", "2")
        assert "no weights for vim_tiny_patch16_224: expected --checkpoint FILE or --pretrained" in line
        assert "medmamba_tiny" in _check(capsys, *command, "--model", "medmamba_tiny", "--num-classes", "2")
        assert "empty text" in _check(capsys, *command, *CLASSES, "--checkpoint", "")
    assert json.loads(prints("predict", image, *CLASSES, "--random-weights", "--json"))
    assert "not allowed with" in _check(capsys, "predict", image, *CLASSES, "--random-weights", "--checkpoint", "w.pth")


def test_names_of_files_may_be_anything(prints):
    for name in (os.fsdecode(b"caf\xe9.png"), "a\nb.png", "\x1b[31mred.png", "[red].png"):
        os.link("set/val/a/0.png", name)
        text = prints("predict", name, *CLASSES)
        assert "\x1b" not in text and "Probability" in text
        (result,) = json.loads(prints("predict", name, *CLASSES, "--json"))
        assert result["image"] == name


def test_a_dangling_link_among_the_images(capsys):
    os.symlink("nowhere.png", "set/val/a/1.png")
    assert "1.png" in _check(capsys, *DATA)
