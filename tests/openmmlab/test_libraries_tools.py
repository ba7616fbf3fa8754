"""The configs under MMSegmentation's and MMDetection's own scripts and calls, as the two libraries publish them."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("sklearn")
pytest.importorskip("vision_ssm.openmmlab")  # puts the bridge in place, before what needs it
pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope, init_default_scope
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.apis.utils import _preprare_data
from PIL import Image

from vision_ssm.demo.scenes import Scenes, write
from vision_ssm.engine import load_config, packaged_configs
from vision_ssm.engine.config import config_folder
from vision_ssm.openmmlab.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")
SCENES = dict(train=4, val=2, size=64, digits=(2, 5))
BOTH = {name: cfg for name in packaged_configs() if (cfg := load_config(name)).default_scope in ("mmseg", "mmdet")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scenes"), Scenes(**SCENES))


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(Config, "pretty_text", property(str))  # the formatting takes longer than the step


def short(scenes, job: str, folder) -> Path:
    """A config of the user's own that inherits from a packaged one: a step, on a few small scenes."""
    data = dict(dataset=dict(data_root=str(scenes), scenes=SCENES), num_workers=0, persistent_workers=False)
    lines = dict(
        _base_=str(config_folder() / "demo" / f"digits_{job}.py"),
        train_dataloader=dict(data, batch_size=2),
        val_dataloader=data,
        test_dataloader=data,
        train_cfg=dict(max_iters=1, val_interval=1),
        custom_hooks=[],
        log_level="ERROR",
    )
    if job == "detection":
        lines["val_evaluator"] = lines["test_evaluator"] = dict(ann_file=f"{scenes}/coco/instances_val.json")
    path = folder / f"{job}.py"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in lines.items()))
    return path


def run(*arguments) -> None:
    """A script of theirs, in this process."""
    DefaultScope._instance_dict.clear()  # as in a process of its own
    main([str(one) for one in arguments])


@pytest.mark.parametrize("library, job", [("mmseg", "segmentation"), ("mmdet", "detection")])
def test_their_scripts_and_calls(library, job, scenes, tmp_path):
    config, work = short(scenes, job, tmp_path), tmp_path / "work"
    run(f"{library}/tools/train.py", config, "--work-dir", work)
    checkpoint = work / "iter_1.pth"
    assert {"optimizer", "process_states"} <= torch.load(checkpoint, weights_only=True).keys()  # our runner's
    out = ("--out", tmp_path / ("maps" if library == "mmseg" else "boxes.pkl"))
    run(f"{library}/tools/test.py", config, checkpoint, "--work-dir", tmp_path / "test", "--tta", *out)
    assert out[1].exists()

    picture = next((scenes / "images" / "validation").glob("*.jpg"))
    pixels = np.asarray(Image.open(picture))[..., ::-1]
    if library == "mmseg":
        model = init_model(str(config), str(checkpoint), device="cpu")
        assert len(model.dataset_meta["classes"]) == 11
        found = inference_model(model, str(picture)).pred_sem_seg.data
        assert torch.equal(inference_model(model, pixels).pred_sem_seg.data, found)
        inferred = MMSegInferencer(str(config), str(checkpoint), device="cpu")(str(picture), return_datasamples=True)
        assert torch.equal(inferred.pred_sem_seg.data, found)
    else:
        model = init_detector(str(config), str(checkpoint), device="cpu")
        found = inference_detector(model, str(picture)).pred_instances.scores
        assert torch.equal(inference_detector(model, pixels).pred_instances.scores, found)
        inferred = DetInferencer(str(config), str(checkpoint), device="cpu", show_progress=False)(
            str(picture), return_datasamples=True
        )["predictions"][0]
        assert torch.equal(inferred.pred_instances.scores, found)


def test_a_script_that_imports_the_operators_first():
    """In a process where nobody has put the bridge in place."""
    call = [sys.executable, "-W", "ignore", "-m", "vision_ssm.openmmlab", "mmdet/tools/test.py", "--help"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0 and "MMDet test" in done.stdout, done.stderr


def test_scripts_that_are_not_there(tmp_path):
    for script in ("mmdet/tools/tset.py", "nowhere/tools/test.py", str(tmp_path), "test.py"):
        with pytest.raises(SystemExit, match=r"no script .*: expected a file"):
            main([script])
    with pytest.raises(SystemExit, match="SCRIPT"):
        main([])
    (tmp_path / "own.py").write_text("import sys, beside\nassert __name__ == '__main__' and sys.argv[1:] == ['-x']")
    (tmp_path / "beside.py").write_text("")
    main([str(tmp_path / "own.py"), "-x"])
    assert find_spec("beside") is not None  # the script's folder comes first, as in Python's own call


@pytest.mark.parametrize("name", BOTH)
def test_pipelines_have_the_names_that_their_calls_read(name, scenes):
    cfg = BOTH[name].copy()
    for job in ("train", "test"):
        assert cfg[f"{job}_pipeline"] == cfg[f"{job}_dataloader"].dataset.pipeline
    init_default_scope(cfg.default_scope)
    picture = str(next((scenes / "images" / "validation").glob("*.jpg")))
    if cfg.default_scope == "mmseg":
        packed = _preprare_data(picture, SimpleNamespace(cfg=cfg))[0]["inputs"][0]
    else:
        packed = Compose(cfg.test_pipeline)(dict(img_path=picture, img_id=0))["inputs"]
    assert packed.dtype == torch.uint8 and len(packed) == (1 if "synapse" in name else 3)
