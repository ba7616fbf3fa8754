"""The configs of sets with a data list of their own load it from what the tool writes."""

from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from data import trees
from mmengine.registry import DATASETS

from vision_ssm.data.isic import ISIC18
from vision_ssm.data.medical_command import SETS, main
from vision_ssm.engine import load_config

# Set, its files, and the samples of the config's training, validation and test.
LISTS = {
    "medical/mamba_unet_acdc.py": ("acdc", trees.acdc, (140, 20, 40)),
    "medical/segmamba_amos_mr.py": ("amos_mr", trees.amos, (40, 20, 20)),
    "medical/vm_unet_synapse8_18-12.py": ("synapse", trees.btcv_labelled, (18, 12, 12)),
    "medical/vm_unet_isic.py": ("isic18", lambda root: trees.isic(root, ISIC18.folders, value=1), (1886, 808, 808)),
}


@pytest.mark.parametrize("name", LISTS)
def test_config_loads_the_list(name, tmp_path):
    cfg, (known, make, counts) = load_config(name), LISTS[name]
    root = make(tmp_path / known)
    assert Path(cfg.train_dataloader.dataset.data_root) == Path(SETS[known].root)
    assert main("title", [known, str(root)]) == 0
    if known != "synapse":  # whose files have more organs
        assert tuple(cfg.classes) == tuple(SETS[known].labels)
    sets = []
    for part in ("train", "val", "test"):
        dataset = cfg[f"{part}_dataloader"].dataset
        dataset.data_root = str(root)
        sets.append(DATASETS.build(dataset))
    assert tuple(map(len, sets)) == counts
    training, *whole = (one[0] for one in sets)
    roi = tuple(cfg.model.inference.roi_size)
    assert training["image"].shape[-len(roi) - 1 :] == (cfg.model.network.in_chans, *roi)
    assert training["label"].shape[-len(roi) - 1 :] == (1, *roi)
    for sample in whole:
        assert sample["case"].truth.unique().tolist() == list(range(len(cfg.classes)))


def test_acdc_s_spacing(tmp_path):
    """The header's, in which distances are measured, where an sform says 1 mm."""
    root = trees.acdc(tmp_path)
    for path in (root / "training/patient001").glob("*.nii.gz"):
        trees.unit_sform(path)
    assert main("title", ["acdc", str(root)]) == 0
    dataset = load_config("medical/mamba_unet_acdc.py").test_dataloader.dataset
    dataset.data_root = str(root)
    assert DATASETS.build(dataset)[0]["case"].spacing == pytest.approx((1.5, 1.5, 10))
