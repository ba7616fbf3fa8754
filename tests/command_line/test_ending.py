"""However a command ends: a status, one line, and nothing that changes the terminal."""

import io
import os
import sys

import pytest

from vision_ssm.command_line import CommandError, printable, run_command


class _Full(io.StringIO):
    """A stream on a full disk."""

    def flush(self):
        raise OSError(28, "No space left on device")


class _Closed(io.StringIO):
    """A pipe whose reader went away."""

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def _raising(error: BaseException):
    def command() -> int:
        raise error

    return command


def _codec_error() -> UnicodeEncodeError:
    with pytest.raises(UnicodeEncodeError) as caught:
        "work_dir = 'caf\udce9'".encode()
    return caught.value


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CommandError("no image at x"), 2, "p: error: no image at x"),
        (CommandError("two\n  lines"), 2, "p: error: two   lines"),
        (FileNotFoundError(2, "No such file or directory", "a\nb"), 2, r"p: error: a\nb: No such file or directory"),
        (FileNotFoundError("no checkpoint at x"), 2, "p: error: no checkpoint at x"),
        (OSError(28, "No space left on device"), 2, "p: error: No space left on device"),
        (PermissionError(13, "Permission denied", b"caf\xe9"), 2, r"p: error: caf\xe9: Permission denied"),
        (
            ModuleNotFoundError("No module named 'rich'", name="rich"),
            2,
            "p: error: No module named 'rich': install vision",
        ),
        (MemoryError(), 2, "p: error: there is not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "p: error: there is not enough memory",
        ),
        (_codec_error(), 2, "p: error: a name is no UTF-8"),
        (KeyboardInterrupt(), 130, "p: interrupted"),
        (KeyError("x"), 70, "p: internal error: KeyError: 'x': this is a fault of Vision SSM"),
        (ModuleNotFoundError("none", name="vision_ssm.x"), 70, "p: internal error: ModuleNotFoundError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_one_line_and_a_status(error, status, line, capsys):
    assert run_command("p", _raising(error)) == status
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)


def test_errors_of_a_process_that_loads_data_name_the_file(capsys):
    text = (
        "Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "  File \"x.py\", line 1\nFileNotFoundError: [Errno 2] No such file or directory: 'set/1.png'\n"
    )
    assert run_command("p", _raising(FileNotFoundError(text))) == 2
    assert capsys.readouterr().err == "p: error: No such file or directory: 'set/1.png'\n"


def test_a_command_that_ends_well(capsys):
    assert run_command("p", lambda: print("caf\udce9") or 0) == 0
    out, err = capsys.readouterr()
    assert "caf" in out and not err


def test_the_traceback_is_there_for_who_asks(monkeypatch, capsys):
    monkeypatch.setenv("VISION_SSM_TRACEBACK", "1")
    assert run_command("p", _raising(CommandError("no"))) == 2
    assert "Traceback" in capsys.readouterr().err


def test_output_that_nobody_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", _Full())
    assert run_command("p", lambda: 0) == 2
    assert capsys.readouterr().err == "p: error: the output cannot be written: No space left on device\n"
    monkeypatch.setattr(sys, "stdout", _Closed())
    assert run_command("p", lambda: 0) == 141
    assert not capsys.readouterr().err


def test_a_program_without_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command("p", lambda: 0) == 0
    assert run_command("p", _raising(CommandError("nobody hears"))) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 🦀", "plain é 🦀"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("right\u202eto left", r"right\u202eto left"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_long_text_loses_its_middle():
    shown = printable("begin" + "x" * 10**6 + "end")
    assert len(shown) < 3000 and shown.startswith("begin") and shown.endswith("end")
