"""Files that are never seen half written, and JSON that every program reads."""

import json

import numpy as np

from vision_ssm.files import json_text, write_json


def _no_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


def test_what_is_not_finite_is_null(tmp_path):
    content = dict(a=float("nan"), b=[1.5, float("-inf"), dict(c=(np.float64("nan"), 2))], d="NaN", e=None, f=True)
    path = write_json(tmp_path / "new" / "metrics.json", content)
    read = json.loads(path.read_text(), parse_constant=_no_constant)
    assert read == dict(a=None, b=[1.5, None, dict(c=[None, 2])], d="NaN", e=None, f=True)
    assert path.read_text() == json_text(content) + "\n"
