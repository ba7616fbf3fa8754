"""What is outside an argument's range is refused before it is used; a place for a file is looked at first."""

import argparse
import os

import pytest

from vision_ssm.command_line import (
    CommandError,
    Parser,
    check_input,
    check_output,
    location,
    make_folder,
    nonempty,
    number,
    threads,
    whole,
)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), ("1024", 1024)])
def test_whole(text, value):
    assert whole(0, 1024)(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1025", "1.5", "1e2", "nan", "0x10", " 1", "1_0", "٣", "9" * 5000])
def test_not_whole(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number from 0 to 1024") as caught:
        whole(0, 1024)(text)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "x", "", "1e400", "11"])
def test_not_a_number(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number above 0 to 10"):
        number(0, 10)(text)


def test_other_types():
    assert number()("1e-3") == 1e-3
    assert threads("1") == 1
    with pytest.raises(argparse.ArgumentTypeError):
        threads("1000000000")
    for kind in (nonempty, location):
        for text in ("", "a\0b"):
            with pytest.raises(argparse.ArgumentTypeError):
                kind(text)


def test_a_parser_tells_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        Parser(prog="p").parse_args(["--no\x1b", "a\nb"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unrecognized arguments") and line.isprintable()


def test_inputs(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert check_input(file, "image") == file
    (tmp_path / "link").symlink_to("file")
    check_input(tmp_path / "link", "image")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (
        ("none", "no image at .*none$"),
        ("file/under", "no image at .*under$"),
        ("dangling", "is a link to nowhere"),
        ("loop", "symbolic links"),
        ("pipe", "is a named pipe: expected a file"),
        (".", "is a folder: expected a file"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(CommandError, match=why):
            check_input(tmp_path / name, "image")


def test_outputs(tmp_path):
    given, data = tmp_path / "given.pth", tmp_path / "data"
    given.touch()
    data.mkdir()
    (data / "0.png").touch()
    (tmp_path / "same").symlink_to(given)
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("given.pth", "written over"),
        ("same", "written over"),
        ("data/0.png", "written over"),
        ("data", "is a folder"),
        ("none/o.json", "no folder"),
        ("given.pth/o.json", "no folder"),
        ("pipe", "is a named pipe"),
        ("x" * 300 + "/o", "cannot be written: File name too long"),
    ):
        with pytest.raises(CommandError, match=why):
            check_output(tmp_path / name, [given, data, None, "https://example.org/a.pth"])
    with pytest.raises(CommandError, match="a device"):
        check_output(location("/dev/null"))
    check_output(tmp_path / "new.json", [given, data])
    check_output(data / "result.json", [data])


def test_folders(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for name, why in (("file", "it is a file"), ("file/under", "Not a directory"), ("x" * 300, "too long")):
        with pytest.raises(CommandError, match=f"cannot be a folder for results: .*{why}"):
            make_folder(tmp_path / name)
