"""Configs in YAML and JSON are data; a `type` names a class, and no function is called by its name."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
from engine.tiny import config
from mmengine.fileio.handlers import file_handlers
from mmengine.registry import FUNCTIONS, MODELS

from vision_ssm.engine import ConfigError, load_config, train
from vision_ssm.engine.config import config_folder
from vision_ssm.engine.types import checked_types

MODEL = "model: {type: TinyModel, width: 3}\n"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{y}: &{y} [*{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}, *{x}]\n" for x, y in zip("abcdef", "bcdefg")
)


def test_data_is_read(tmp_path):
    (tmp_path / "base.yaml").write_text(MODEL + "size: !!python/tuple [4, 5]\n")
    (tmp_path / "run.json").write_text('{"_base_": "base.yaml", "work_dir": "x"}')
    (tmp_path / "run.py").write_text("_base_ = 'run.json'\nwork_dir = 'y'\n")
    cfg = load_config(tmp_path / "run.py")
    assert (cfg.model.width, cfg.size, cfg.work_dir) == (3, (4, 5), "y")


def test_data_may_build_on_packaged_configs(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"_base_: {config_folder() / '_base_/segmentation_runtime.py'}\nmodel: {{}}\nwork_dir: mine\n")
    assert load_config(path).work_dir == "mine"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.yaml", "model: !!python/object/apply:os.mkdir ['made']\n", "python/object/apply:os.mkdir"),
        ("a.yml", "model: {{ !!python/object/new:os.mkdir ['made'] }}\n", "unhashable key, line 1"),
        ("a.yaml", "model: !!python/name:os.system\n", "python/name:os.system"),
        ("a.yaml", "_base_: tagged.yaml\n", "python/object/apply:os.mkdir"),
        ("a.py", "_base_ = 'tagged.yaml'\n", "python/object/apply:os.mkdir"),
        ("a.yaml", "_base_: code.py\n", "names code.py, which is code"),
        ("a.yaml", "_base_: mmseg::../../code.py\n", "which is code"),
        ("a.yaml", "_base_: mmseg::{here}/code.py\n", "which is code"),
        ("a.yaml", "_base_: [{configs}/_base_/segmentation_runtime.py, code.py]\n", "names code.py, which is code"),
        ("a.yaml", "_base_: [{configs}/_base_/segmentation_runtime.py, ~/code.py]\n", "which is code"),
        ("a.yaml", "{{ $UNSET_NAME:_base_ }}: code.py\n", "which is code"),
        ("a.json", '{"_base_": ["code.py"]}', "which is code"),
        ("a.yaml", "_base_: folder/deeper.yaml\n", "which is code"),
        ("a.yaml", MODEL + "custom_imports: {imports: [code]}\n", "`custom_imports` runs code"),
        ("a.json", '{"model": {}, "custom_imports": {"imports": ["code"]}}', "`custom_imports` runs code"),
        ("a.yaml", "- 1\n", "expected keys with their values"),
        ("a.yaml", "", "expected keys with their values"),
        ("a.yaml", "_base_: [3]\n", "expected names of files"),
        ("a.yaml", "model: &a [*a]\n", "holds more than"),
        ("a.yaml", BOMB, "holds more than"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '{"_base_": "a.json"}', "builds on itself"),
        ("a.json", "{", "double quotes"),
        ("a.yaml", b"\xff\xfe\x00\x01", "no text in UTF-8"),
    ],
)
def test_code_and_nonsense_are_refused(name, text, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("code.py").write_text("import os\nos.mkdir('made')\nmodel = {}\n")
    Path("tagged.yaml").write_text("model: !!python/object/apply:os.mkdir ['made']\n")
    Path("folder").mkdir()
    Path("~").mkdir()
    Path("~/code.py").write_text(Path("code.py").read_text())
    Path("folder/deeper.yaml").write_text("_base_: evil.py\n")
    Path("folder/evil.py").write_text("import os\nos.mkdir('made')\nmodel = {}\n")
    if isinstance(text, str):
        text = text.replace("{here}", str(tmp_path)).replace("{configs}", str(config_folder())).encode()
    Path(name).write_bytes(text)
    before = dict(file_handlers)
    with pytest.raises(ConfigError, match=rf"{name} cannot be read: .*{why}"):
        load_config(name)
    assert not Path("made").exists()
    assert file_handlers == before  # MMEngine's own reader is back


@pytest.mark.parametrize("name", ["", ".", "/", "nope", "x\0y"])
def test_names_that_are_no_config(name):
    with pytest.raises(FileNotFoundError, match="no config"):
        load_config(name)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", 3, "keys with their values"),
        ("train_dataloader", [1], "keys with their values"),
        ("optim_wrapper", {"optimizer": 3}, "keys with their values"),
        ("param_scheduler", 3, "a list of such"),
        ("default_scope", "", "text"),
        ("work_dir", 3, "text"),
        ("load_from", "", "text"),
    ],
)
def test_values_of_another_kind(key, value, expected, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": {}, key: value}))
    with pytest.raises(ConfigError, match=rf"run\.json: `{key}\S*` is .*: expected .*{expected}"):
        load_config(path)


@pytest.mark.parametrize("option", ["a..b", ".a", "a.", "model.x'y", "model.a\nb", "model.a\udce9"])
def test_options_that_are_no_keys(option, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(MODEL)
    with pytest.raises(ConfigError, match="is no key"):
        load_config(path, {option: 1})


@pytest.mark.parametrize(
    "name", ["os.mkdir", "builtins.print", "subprocess.Popen", "mmengine.load", "mmengine.fileio.load", "torch.load",
             "torch.serialization.Enum", "antigravity", "code_beside"],
)  # fmt: skip
def test_functions_are_not_found_by_their_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("code_beside.py").write_text("import os\nos.mkdir('made')\n")
    with pytest.raises(ConfigError, match=name):
        train(config(**{"train_dataloader.dataset": dict(type=name)}), tmp_path / "run")
    with pytest.raises(ConfigError, match=name):
        train(config(**{"model": dict(type=name)}), tmp_path / "run")
    assert not Path("made").exists()


def test_classes_and_registered_functions_are_found():
    with checked_types():
        assert MODELS.get("torch.nn.Linear").__name__ == "Linear"
        assert FUNCTIONS.get("mmengine.dataset.utils.pseudo_collate").__name__ == "pseudo_collate"
        assert MODELS.get("torch.nn.functional.relu") is None
    assert MODELS.get("torch.nn.functional.relu") is not None  # MMEngine's own rule is back
