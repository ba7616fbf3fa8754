"""A picture of volumes with their labels and predictions, in three planes, as radiologists look at them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from numpy.typing import NDArray

from ..data.volume_files import is_picture
from ..engine.outputs import check_outputs
from ..files import write_atomically, write_json
from ..volumes.case import prediction_names

__all__ = ["VolumeSheet", "Volumes", "draw", "find_volumes", "planes"]

_WINDOW = -160.0, 240.0  # HU: the usual window of the abdomen
# Of a plane: the axis across it, the axes of its columns and rows (in order), the sides its columns start and end at.
# High coordinates come first: the patient's right is on the left of the picture, the front on that of a sagittal one.
_PLANES = {"axial": (2, 0, 1, "RL"), "coronal": (1, 0, 2, "RL"), "sagittal": (0, 1, 2, "AP")}


@dataclass(frozen=True)
class Volumes:
    """Files of one case, on the same grid: image, label and prediction."""

    image: Path
    label: Path
    prediction: Path


def _load(path: Path) -> nibabel.Nifti1Image:
    """A volume with its axes in the order of RAS."""
    return nibabel.as_closest_canonical(nibabel.load(path))


def _busiest(labels: NDArray, axis: int) -> int:
    """The slice across an axis that shows most classes, and of those the one with most labelled voxels."""
    slices = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    return max(range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i])))


def planes(volumes: Sequence[NDArray], labels: NDArray) -> dict[str, list[NDArray]]:
    """Axial, coronal and sagittal slices through as many organs as possible, in radiological orientation.

    Args:
        volumes: (n_x, n_y, n_z) each, axes in the order of RAS.
        labels: the same shape; slices are chosen by it.

    Returns:
        By the plane's name, a slice of each volume: rows from the front or the head, columns from the patient's right,
        in the sagittal plane from the front.
    """
    found = {}
    for name, (across, *_) in _PLANES.items():
        at = _busiest(labels, across)
        found[name] = [np.take(volume, at, axis=across).T[::-1, ::-1] for volume in volumes]
    return found


def _colours(number: int) -> NDArray[np.float64]:
    """RGBA (number, 4): a colour for each class, the background transparent."""
    import matplotlib

    strong = [i for i in (*range(0, 20, 2), *range(1, 20, 2)) if i not in (14, 15)]  # grey is the image's
    if number - 1 <= len(strong):
        palette = matplotlib.colormaps["tab20"](strong[: number - 1])
    else:
        palette = matplotlib.colormaps["hsv"](np.arange(number - 1) / (number - 1))
    return np.vstack([np.zeros(4), palette])


def _read(case: Volumes) -> tuple[list[NDArray], NDArray[np.float64]]:
    """Image, label and prediction in the order of RAS, and their spacing.

    Raises:
        ValueError: a label or a prediction is not on the image's grid.
    """
    files = [_load(path) for path in (case.image, case.label, case.prediction)]
    for path, file in zip((case.label, case.prediction), files[1:], strict=True):
        if file.shape != files[0].shape or not np.allclose(file.affine, files[0].affine, atol=0.01):
            raise ValueError(f"{path} is not on the grid of {case.image}: expected the same shape and affine")
    image, *labels = [np.asanyarray(file.dataobj) for file in files]
    return [image, *(np.rint(x).astype(int) for x in labels)], np.linalg.norm(files[0].affine[:3, :3], axis=0)


def draw(
    cases: Sequence[Volumes],
    classes: Sequence[str],
    path: Path,
    window: tuple[float, float] = _WINDOW,
    label_map: Mapping[int, int] | None = None,
) -> Path:
    """Write a picture with a row for each case: label and prediction over the image, in three planes.

    Args:
        cases: their files.
        classes: names, the background first.
        path: of the PNG.
        window: densities that are black and white, HU.
        label_map: ids in the label files to ids of classes; ids without an entry become background.

    Raises:
        ValueError: there is no case, or a label or a prediction is not on its image's grid.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not cases:
        raise ValueError("expected at least one case to draw")
    colours = _colours(len(classes))
    figure, axes = plt.subplots(
        len(cases), 6, figsize=(15, 2.6 * len(cases) + 0.7), squeeze=False, layout="constrained"
    )
    for number, (row, case) in enumerate(zip(axes, cases, strict=True)):
        (image, label, prediction), spacing = _read(case)
        if label_map:
            label = sum(new * (label == old) for old, new in label_map.items())
        shown = planes([image, label, prediction], label if label.any() else prediction)
        for i, (plane, (slice_, *overlays)) in enumerate(shown.items()):
            _, column_axis, row_axis, sides = _PLANES[plane]
            for ax, overlay, kind in zip(row[2 * i : 2 * i + 2], overlays, ("label", "prediction"), strict=True):
                aspect = spacing[row_axis] / spacing[column_axis]
                ax.imshow(slice_, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
                paint = colours[overlay.clip(0, len(classes) - 1)] * [1, 1, 1, 0.55]
                ax.imshow(paint, aspect=aspect, interpolation="nearest")
                for x, side, align in ((0.02, sides[0], "left"), (0.98, sides[1], "right")):
                    ax.text(x, 0.5, side, color="white", fontsize=8, ha=align, va="center", transform=ax.transAxes)
                ax.set(xticks=[], yticks=[], title=f"{plane}: {kind}" if number == 0 else "")
        row[0].set_ylabel(case.image.name.split(".")[0])
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours[1:]]
    figure.legend(handles, classes[1:], loc="outside lower center", ncols=min(7, len(handles)), fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110))
    plt.close(figure)
    return path


def find_volumes(items: Sequence[Mapping], predictions: str | Path, most: int) -> list[Volumes]:
    """The first volumes that have a prediction; pictures are left out.

    Args:
        items: `image` and `label` of each case, as a `VolumeDataset` has them; of several channels the first counts.
        predictions: folder of predictions, named as `prediction_names` says.
        most: number of cases.
    """
    found = []
    images = [item["image"] if isinstance(item["image"], str) else item["image"][0] for item in items]
    for item, image, name in zip(items, map(Path, images), prediction_names(images), strict=True):
        prediction = Path(predictions) / name
        if "label" in item and not is_picture(image) and prediction.is_file():
            found.append(Volumes(image, Path(item["label"]), prediction))
    return found[:most]


@HOOKS.register_module()
class VolumeSheet(Hook):
    """Writes `metrics.json` after each evaluation, and `predictions.png` when the run ends.

    Metrics that have an `output_dir` of None write their predictions to the work folder.

    Args:
        samples: number of cases in the picture, the first ones of the set that is evaluated.
        predictions: folder of predictions in the work folder, where the metrics name no other.
        window: densities that are black and white, HU.
    """

    priority = "LOW"

    def __init__(self, samples: int = 3, predictions: str = "predictions", window: Sequence[float] = _WINDOW):
        self.samples, self.predictions = samples, predictions
        self.window = float(window[0]), float(window[1])
        self.dataset = None

    def before_run(self, runner) -> None:
        """Have the predictions written."""
        for loop in (runner._val_loop, runner._test_loop):
            for metric in getattr(getattr(loop, "evaluator", None), "metrics", ()):
                if getattr(metric, "output_dir", "") is None:
                    metric.output_dir = str(Path(runner.work_dir) / self.predictions)
                    check_outputs(runner.cfg, loop)  # again: predictions are now written
                elif getattr(metric, "output_dir", ""):
                    self.predictions = metric.output_dir

    def before_val_epoch(self, runner) -> None:
        """Remember what is evaluated."""
        self.dataset = runner.val_dataloader.dataset

    def before_test_epoch(self, runner) -> None:
        """Remember what is evaluated."""
        self.dataset = runner.test_dataloader.dataset

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Write the metrics."""
        if is_main_process():
            content = {name: float(value) for name, value in (metrics or {}).items()}
            write_json(Path(runner.work_dir) / "metrics.json", content)

    after_test_epoch = after_val_epoch

    def after_run(self, runner) -> None:
        """Draw the last predictions."""
        if not is_main_process() or self.dataset is None:
            return
        folder = Path(runner.work_dir)
        cases = find_volumes(self.dataset.items, folder / self.predictions, self.samples)
        if not cases:
            runner.logger.warning(f"{folder / self.predictions} holds no prediction of a case with a label: no picture")
            return
        classes, label_map = self.dataset.metainfo["classes"], self.dataset.label_map
        draw(cases, classes, folder / "predictions.png", self.window, label_map)
        runner.logger.info(f"wrote {folder / 'predictions.png'}")
