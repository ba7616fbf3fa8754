"""A picture of predictions beside the truth, after an evaluation."""

from pathlib import Path

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from ..files import write_atomically, write_json

__all__ = ["PredictionSheet"]


@HOOKS.register_module()
class PredictionSheet(Hook):
    """Writes `predictions.png` and `metrics.json` to the work folder after each evaluation.

    Args:
        samples: number of images on the sheet, the first ones of the data set.
        score: detections below it are not drawn.
    """

    priority = "LOW"

    def __init__(self, samples: int = 12, score: float = 0.5):
        self.samples, self.score = samples, score
        self._shown: list = []

    def _collect(self, outputs) -> None:
        self._shown += [sample.cpu() for sample in outputs[: self.samples - len(self._shown)]]

    def _write(self, runner, metrics: dict) -> None:
        shown, self._shown = self._shown, []
        if not is_main_process():
            return
        folder = Path(runner.work_dir)
        draw(shown, runner.visualizer.dataset_meta, folder / "predictions.png", self.score)
        write_json(folder / "metrics.json", {name: float(value) for name, value in metrics.items()})
        runner.logger.info(f"wrote {folder / 'predictions.png'} and metrics.json")

    def before_val_epoch(self, runner) -> None:
        """Forget the evaluation before."""
        self._shown = []

    before_test_epoch = before_val_epoch

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Keep the first predictions."""
        self._collect(outputs)

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Write the sheet."""
        self._write(runner, metrics or {})

    after_test_epoch = after_val_epoch


def draw(samples: list, meta: dict, path: Path, score: float = 0.5) -> Path:
    """Write images, truth and predictions side by side.

    Args:
        samples: data samples of MMSegmentation or MMDetection, with truth and prediction, on the CPU.
        meta: of the data set: classes and palette.
        path: of the PNG.
        score: detections below it are not drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 2 if len(samples) > 4 else 1
    rows = -(-len(samples) // columns)
    figure, axes = plt.subplots(rows, 3 * columns, figsize=(6.6 * columns, 2.2 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, sample in enumerate(samples):
        trio = axes[i % rows, 3 * (i // rows) : 3 * (i // rows) + 3]
        image = np.asarray(Image.open(sample.img_path).convert("RGB"))
        trio[0].imshow(image)
        render = _draw_maps if "pred_sem_seg" in sample else _draw_instances
        render(trio[1:], image, sample, meta, score)
        if i % rows == 0:
            for ax, title in zip(trio, ("image", "truth", "prediction"), strict=True):
                ax.set_title(title)
    figure.tight_layout()
    write_atomically(path, lambda file: figure.savefig(file, dpi=100))
    plt.close(figure)
    return path


def _draw_maps(axes, image: np.ndarray, sample, meta: dict, _score: float) -> None:
    palette = np.asarray(meta["palette"], dtype=np.uint8)
    for ax, field in zip(axes, ("gt_sem_seg", "pred_sem_seg"), strict=True):
        labels = sample.get(field).data.squeeze(0).numpy()
        known = labels < len(palette)
        ax.imshow(np.where(known[..., None], palette[np.where(known, labels, 0)], 255))


def _draw_instances(axes, image: np.ndarray, sample, meta: dict, score: float) -> None:
    predicted = sample.pred_instances
    for ax, found in zip(axes, (sample.gt_instances, predicted[predicted.scores > score]), strict=True):
        canvas = image.astype(np.float32) / 255
        masks = found.masks.masks if hasattr(found.masks, "masks") else found.masks.numpy()
        for mask, label in zip(masks, found.labels.tolist(), strict=True):
            colour = np.asarray(meta["palette"][label], dtype=np.float32) / 255
            inside = mask.astype(bool)
            canvas[inside] = 0.35 * canvas[inside] + 0.65 * colour
        ax.imshow(canvas)
        boxes = getattr(found.bboxes, "tensor", found.bboxes).reshape(-1, 4)
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), found.labels.tolist(), strict=True):
            colour = np.asarray(meta["palette"][label]) / 255
            ax.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=1)
            ax.text(x0, y0, meta["classes"][label], color="white", fontsize=7, backgroundcolor=(*colour, 0.7))
