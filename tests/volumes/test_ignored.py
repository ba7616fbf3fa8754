"""Voxels that are ignored: in samples, in the loss and in the metrics, against float64 by hand."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("monai")
from volumes import tiny_volumes

from vision_ssm.engine import ConfigError, DataError, train
from vision_ssm.engine import test as evaluate
from vision_ssm.volumes import Case, DeepSupervision, VolumeDataset, VolumeMetrics, VolumeSegmentor

BOTH = ["image", "label"]
LOAD = [dict(type="LoadImaged", keys=BOTH), dict(type="EnsureChannelFirstd", keys=BOTH)]
AFFINE = np.diag([-1.0, -1.5, 2.0, 1.0])


def _reference(logits, label, batch, weight):
    """Dice and cross-entropy of the voxels that are not -1, voxel by voxel in float64."""
    logits, label = logits.double(), label.long()[:, 0]
    kept = label >= 0
    onehot = torch.stack([(label == c) & kept for c in range(logits.shape[1])], 1).double()
    p = logits.softmax(1) * kept[:, None]
    axes = (0, 2, 3, 4) if batch else (2, 3, 4)
    dice = 1 - (2 * (p * onehot).sum(axes) + 1e-5) / ((p + onehot).sum(axes) + 1e-5)
    weight = torch.ones(logits.shape[1]).double() if weight is None else torch.tensor(weight).double()
    dice = weight * (
        dice if batch else dice[kept.flatten(1).any(1)]
    )  # samples without a voxel that counts have no Dice
    log_p = logits.log_softmax(1)
    voxels = onehot * weight.view(1, -1, 1, 1, 1)
    cross_entropy = -(voxels * log_p).sum() / voxels.sum()
    return dice.mean() + cross_entropy


@pytest.mark.parametrize("weight", [None, (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("batch", [True, False])
def test_loss_of_what_counts(batch, weight):
    torch.manual_seed(0)
    logits = torch.randn(3, 3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    label = torch.randint(-1, 3, (3, 1, 4, 5, 6))
    label[1] = -1
    found = DeepSupervision(batch=batch, weight=weight)(logits, label)
    assert found.item() == pytest.approx(_reference(logits, label, batch, weight).item(), rel=1e-5)
    found.backward()
    assert not logits.grad[(label < 0).expand_as(logits)].any()
    assert logits.grad[(label >= 0).expand_as(logits)].all()


def test_loss_of_nothing_is_0_and_that_of_all_as_before():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    loss = DeepSupervision(batch=True)
    nothing = loss([logits, logits[..., ::2, ::2, ::2]], torch.full((2, 1, 4, 4, 4), -1))
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()
    label = torch.randint(0, 3, (2, 1, 4, 4, 4))
    assert loss(logits, label).item() == pytest.approx(_reference(logits, label, True, None).item(), rel=1e-5)


def test_a_sum_over_what_counts():
    """Without the slices that are ignored the loss is the same."""
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 1, 4, 5, 6))
    label[:, :, :2] = -1
    loss = DeepSupervision(reduction="sum")
    assert loss(logits, label).item() == pytest.approx(loss(logits[:, :, 2:], label[:, :, 2:]).item(), rel=1e-5)


def test_metrics_of_what_counts():
    truth, found = torch.zeros(9, 9, 1, dtype=torch.uint8), torch.zeros(9, 9, 1, dtype=torch.uint8)
    ignored = torch.zeros(9, 9, 1, dtype=torch.bool)
    truth[2:6, 2:6], found[2:6, 2:5], found[7:, 7:] = 1, 1, 1
    ignored[7:, 7:] = ignored[2:6, 5] = True  # all that differs
    metric = VolumeMetrics(["background", "organ"])
    eye = torch.eye(4, dtype=torch.float64)
    for mask in (None, ignored):
        case = Case("x.nii.gz", eye, eye, (9, 9, 1), truth, mask)
        metric.process({}, [dict(labels=found, case=case)])
    with_all, counted = metric.results
    assert with_all["dice/organ"] == pytest.approx(2 * 12 / (16 + 16)) and with_all["hd95/organ"] > 1
    assert counted["dice/organ"] == 1 and counted["hd95/organ"] == 0


@pytest.fixture
def root(tmp_path):
    """A data set whose label maps hold 9 where nobody decided."""
    root = tiny_volumes.write(tmp_path / "data", train=2, val=1, affine=AFFINE)
    for path in (root / "labelsTr").iterdir():
        labels = tiny_volumes.arrays(int(path.name[5:9]))[1]
        labels[:, :6], labels[0, 0, 0] = 9, 9
        tiny_volumes.save(path, labels, AFFINE)
    return root


@pytest.mark.parametrize("label_map", [None, {0: 0, 1: 1, 2: 2}])
def test_ids_that_are_ignored(label_map, root):
    arguments = tiny_volumes.dataset(root, transforms=LOAD, label_map=label_map, ignore_label=9)
    arguments.pop("type")
    data = VolumeDataset(**arguments)
    data.check()
    label = data[0]["label"]
    assert (label[:, :, :6] == -1).all() and label[:, :, 6:].min() == 0 and label.max() == 2
    case = VolumeDataset(**arguments | dict(transforms=tiny_volumes.loading("image")[:2], test_mode=True))[0]["case"]
    assert torch.equal(case.ignored, label[0] == -1) and torch.equal(case.truth, label[0].clamp(0).byte())
    with pytest.raises(DataError, match="ids outside the classes: 9"):
        VolumeDataset(**arguments | dict(ignore_label=None)).check()


def test_training_and_test_with_ignored_voxels(root, tmp_path):
    cfg = tiny_volumes.config(root, steps=2, param_scheduler=[])
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.ignore_label = 9
    train(cfg, tmp_path / "run")
    perfect = dict(type="volumes.tiny_volumes.Threshold")
    torch.save(dict(state_dict=VolumeSegmentor(perfect, dict(roi_size=(12, 12, 12))).state_dict()), tmp_path / "w.pth")
    cfg.model.network = perfect
    assert evaluate(cfg, tmp_path / "w.pth", tmp_path / "run")["mean_dice"] == 1


@pytest.mark.parametrize("ignore_label", [0, 2, -1, 1 << 16])
def test_ids_that_cannot_be_ignored(ignore_label, root):
    arguments = tiny_volumes.dataset(root, ignore_label=ignore_label)
    arguments.pop("type")
    with pytest.raises(ConfigError, match=f"`ignore_label` is {ignore_label}"):
        VolumeDataset(**arguments)
