"""Instance segmentation over several views."""

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")
pytest.importorskip("vision_ssm.openmmlab")  # puts the bridge in place, before what needs it
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from vision_ssm.openmmlab.tta import InstanceTTAModel


class _Detector(torch.nn.Module):
    def test_step(self, data):
        """Never called."""


def _model(**tta) -> InstanceTTAModel:
    cfg = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=10) | tta
    import mmengine

    return InstanceTTAModel(tta_cfg=mmengine.ConfigDict(cfg), module=_Detector())


def _view(found: list[tuple[tuple[int, int, int, int], float, int]], flip: str | None = None) -> DetDataSample:
    """Boxes, scores and labels in an image of 20x30 pixels, seen as they are or flipped; masks fill the boxes."""
    height, width = 20, 30
    boxes, masks = [], []
    for (x0, y0, x1, y1), _, _ in found:
        if flip in ("horizontal", "diagonal"):
            x0, x1 = width - x1, width - x0
        if flip in ("vertical", "diagonal"):
            y0, y1 = height - y1, height - y0
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[y0:y1, x0:x1] = True
        boxes.append([x0, y0, x1, y1])
        masks.append(mask)
    sample = DetDataSample(
        metainfo=dict(ori_shape=(height, width), flip=flip is not None, flip_direction=flip, scale_factor=(1, 1))
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in found]),
        labels=torch.tensor([label for _, _, label in found], dtype=torch.long),
        masks=torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
    )
    return sample


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "diagonal"])
def test_a_mask_comes_with_its_box(flip):
    first = [((2, 3, 10, 12), 0.5, 1), ((15, 5, 28, 18), 0.9, 2)]
    second = [((2, 3, 10, 13), 0.8, 1), ((14, 5, 28, 18), 0.6, 2), ((20, 0, 25, 4), 0.3, 1)]
    merged = _model()._merge_single_sample([_view(first), _view(second, flip)]).pred_instances
    expected = [first[1], second[0], second[2]]  # the better of each pair, and the one that only one view has
    assert merged.scores.tolist() == pytest.approx([score for _, score, _ in expected])
    assert merged.labels.tolist() == [label for _, _, label in expected]
    for box, mask, (truth, _, _) in zip(merged.bboxes, merged.masks, expected, strict=True):
        assert box.tolist() == pytest.approx(truth)
        assert mask.nonzero().amin(0).tolist() == [truth[1], truth[0]]
        assert (mask.nonzero().amax(0) + 1).tolist() == [truth[3], truth[2]]


def test_limit_and_nothing_found():
    first = [((2, 3, 10, 12), 0.5, 1), ((15, 5, 28, 18), 0.9, 2)]
    merged = _model(max_per_img=1)._merge_single_sample([_view(first), _view([])]).pred_instances
    assert merged.scores.tolist() == pytest.approx([0.9]) and merged.masks.shape == (1, 20, 30)
    assert len(_model()._merge_single_sample([_view([]), _view([], "horizontal")]).pred_instances) == 0


def test_boxes_alone():
    views = [_view([((2, 3, 10, 12), 0.5, 1)]), _view([((2, 3, 10, 12), 0.7, 1)], "horizontal")]
    for view in views:
        del view.pred_instances.masks
    assert _model()._merge_single_sample(views).pred_instances.scores.tolist() == pytest.approx([0.7])
