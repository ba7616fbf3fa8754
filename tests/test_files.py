"""Files that are never seen half written, and JSON that every program reads."""

import json

import numpy as np
import pytest

from vision_ssm.files import json_text, write_atomically, write_json


def _no_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


def test_what_is_not_finite_is_null(tmp_path):
    content = dict(a=float("nan"), b=[1.5, float("-inf"), dict(c=(np.float64("nan"), 2))], d="NaN", e=None, f=True)
    path = write_json(tmp_path / "new" / "metrics.json", content)
    read = json.loads(path.read_text(), parse_constant=_no_constant)
    assert read == dict(a=None, b=[1.5, None, dict(c=[None, 2])], d="NaN", e=None, f=True)
    assert path.read_text() == json_text(content) + "\n"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 67840 vs 67760"), "is the disk full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "is the disk full"),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_names_it(error, why, tmp_path):
    def write(file):
        file.write_bytes(b"half")
        raise error

    path = tmp_path / "run.pth"
    path.write_bytes(b"precious")
    with pytest.raises(OSError, match=why) as caught:
        write_atomically(path, write)
    assert caught.value.filename == str(path) and path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]
