"""No test writes over what it reads, under whatever name."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from mmengine import Config
from PIL import Image
from volumes import tiny_volumes

from vision_ssm.engine import DataError
from vision_ssm.engine import test as evaluate
from vision_ssm.engine.outputs import check_outputs
from vision_ssm.files import written_over
from vision_ssm.volumes import VolumeMetrics, VolumeSegmentor

PERFECT = dict(type="volumes.tiny_volumes.Threshold")


def test_a_file_is_the_same_under_another_name(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nothing")
    os.link(tmp_path / "a", tmp_path / "hard")
    for name in ("a", "soft", "hard", "folder/../a"):
        assert f"{tmp_path / name} would be written over" in written_over([tmp_path / name], [tmp_path / "a"])
    assert "soft)" in written_over([tmp_path / "a"], [tmp_path / "soft"])
    for name in ("b", "dangling", "folder", "a/b", "x\0y"):
        assert written_over([tmp_path / name], [tmp_path / "a", tmp_path / "folder", tmp_path / "b"]) is None


@pytest.fixture
def root(tmp_path):
    """A data set whose labels have the images' names; those of training and validation are in folders of their own."""
    root = tiny_volumes.write(tmp_path / "data", train=1, val=1, shape=(12, 12, 12))
    lists = json.loads((root / "dataset_0.json").read_text())
    for split, folder in (("training", "a"), ("validation", "b")):
        for key, name in (("image", "images"), ("label", "labels")):
            (root / folder / name).mkdir(parents=True)
            shutil.move(root / lists[split][0][key], root / folder / name / "x.nii.gz")
            lists[split][0][key] = f"{folder}/{name}/x.nii.gz"
    (root / "dataset_0.json").write_text(json.dumps(lists))
    return root


def _contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["b/images", "b/labels", "a/images", "a/labels", "link", "b/../b/labels", "list"])
def test_predictions_replace_no_input(where, root, tmp_path):
    """Of the volumes that are tested, of those that are trained on, and the list itself."""
    (root / "link").symlink_to("b/labels")
    cfg = tiny_volumes.config(root)
    cfg.model.network = PERFECT
    if where == "list":
        (root / "list").mkdir()
        lists = json.loads((root / "dataset_0.json").read_text())
        for split in lists.values():
            split[0] = {key: f"../{path}" for key, path in split[0].items()}
        (root / "list/metrics.json").write_text(json.dumps(lists))
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.data_list = "list/metrics.json"
    torch.save(dict(state_dict=VolumeSegmentor(PERFECT, dict(roi_size=(12, 12, 12))).state_dict()), tmp_path / "w.pth")
    before = _contents(root)
    with pytest.raises(DataError, match=r"(x\.nii\.gz|metrics\.json) would be written over, which is read"):
        evaluate(cfg, tmp_path / "w.pth", tmp_path / "run", out=root / where)
    assert _contents(root) == before


class _Loop:
    """What MMEngine's loops have of data and metrics."""

    def __init__(self, metric, infos):
        dataset = type("Data", (), dict(__len__=lambda _: len(infos), get_data_info=lambda _, i: infos[i]))()
        self.dataloader = type("Loader", (), dict(dataset=dataset))
        self.evaluator = type("Evaluator", (), dict(metrics=[metric]))


@pytest.mark.parametrize("door", ["output_dir", "outfile_prefix", "test_out_dir"])
def test_the_libraries_metrics_and_drawings_replace_no_input(door, tmp_path):
    """MMSegmentation names label maps as their images, MMDetection's results begin with a prefix."""
    names = [tmp_path / folder / f"{i}.png" for folder in ("images", "labels") for i in range(2)]
    for name in names:
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(name)
    (tmp_path / "coco.bbox.json").write_text("{}")
    infos = [dict(img_path=str(image), seg_map_path=str(labels)) for image, labels in zip(names[:2], names[2:])]
    values = dict(output_dir="labels", outfile_prefix="coco", test_out_dir="images")
    metric = type("Metric", (), {} if door == "test_out_dir" else {door: str(tmp_path / values[door])})
    hooks = dict(visualization=dict(test_out_dir=str(tmp_path / "images"))) if door == "test_out_dir" else {}
    cfg = Config(dict(default_hooks=hooks, test_evaluator=dict(ann_file=str(tmp_path / "coco.bbox.json"))))
    with pytest.raises(DataError, match="would be written over"):
        check_outputs(cfg, _Loop(metric, infos))
    for path in [*names, tmp_path / "coco.bbox.json"]:
        path.unlink()
    check_outputs(cfg, _Loop(metric, infos))  # nothing is there


def test_two_predictions_of_one_name(tmp_path):
    infos = [dict(img_path=f"/{one}", prediction="a.png") for one in ("x/a.jpg", "x/a.png")]
    check_outputs(Config(), _Loop(VolumeMetrics(["a", "b"]), infos))
    with pytest.raises(DataError, match=r"/x/a\.jpg and /x/a\.png have one name"):
        check_outputs(Config(), _Loop(VolumeMetrics(["a", "b"], output_dir=str(tmp_path)), infos))
