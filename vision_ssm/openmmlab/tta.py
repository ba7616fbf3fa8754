"""Multi-scale and flipped testing of instance segmentation, which MMDetection's own model leaves out."""

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

__all__ = ["InstanceTTAModel"]


def _unflipped(masks: torch.Tensor, sample: DetDataSample) -> torch.Tensor:
    """Masks (n, height, width) of a view, as they lie in the image."""
    if not sample.metainfo.get("flip"):
        return masks
    axes = {"horizontal": (2,), "vertical": (1,), "diagonal": (1, 2)}[sample.metainfo["flip_direction"]]
    return masks.flip(axes)


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """`DetTTAModel` that keeps masks: a box that survives the suppression over all views brings its own."""

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        views = [sample.pred_instances for sample in data_samples]
        if "masks" not in views[0]:
            return super()._merge_single_sample(data_samples)
        masks = torch.cat([_unflipped(v.masks, s) for v, s in zip(views, data_samples, strict=True)])
        labels = torch.cat([view.labels for view in views])
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views], [view.scores for view in views], [s.metainfo for s in data_samples]
        )
        merged = data_samples[0]
        if boxes.numel():
            kept, order = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
            kept, order = kept[: self.tta_cfg.max_per_img], order[: self.tta_cfg.max_per_img]
            merged.pred_instances = InstanceData(
                bboxes=kept[:, :4], scores=kept[:, 4], labels=labels[order], masks=masks[order]
            )
        return merged
