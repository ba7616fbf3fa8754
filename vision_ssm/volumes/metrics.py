"""Dice and 95 % Hausdorff distance of each organ, on the grid of the label files."""

import csv
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from monai.metrics import compute_hausdorff_distance
from torch import Tensor

from ..engine import ConfigError
from ..files import write_atomically
from .case import Case

__all__ = ["VolumeMetrics", "dice", "hausdorff95"]

_CASES = "cases.csv"


def dice(prediction: Tensor, truth: Tensor) -> float:
    """2 |A and B| / (|A| + |B|) of two masks; NaN where the truth is empty."""
    if not truth.any():
        return math.nan
    both = (prediction & truth).sum().item()
    return 2 * both / (prediction.sum().item() + truth.sum().item())


def hausdorff95(prediction: Tensor, truth: Tensor, spacing: Sequence[float]) -> float:
    """The larger of the 95th percentiles of the distances between two masks' surfaces, in the unit of `spacing`.

    NaN where the truth is empty. A prediction that is empty is as far off as the grid allows: its diagonal. A volume of
    one slice is measured as the plane that it is: across it there is no surface.

    Args:
        prediction, truth: masks (*size).
        spacing: of the voxels.
    """
    if not truth.any():
        return math.nan
    flat = [axis for axis, side in enumerate(truth.shape) if side == 1][: truth.ndim - 1]  # one axis stays
    spacing = [step for axis, step in enumerate(spacing) if axis not in flat]
    prediction, truth = prediction.squeeze(flat), truth.squeeze(flat)
    if not prediction.any():
        return math.hypot(*(side * step for side, step in zip(truth.shape, spacing, strict=True)))
    masks = [mask[None, None] for mask in (prediction, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about its own calls
        distance = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
    return distance.item()


@METRICS.register_module()
class VolumeMetrics(BaseMetric):
    """`dice/ORGAN` and `hd95/ORGAN`, means over the volumes that show the organ; `mean_dice` and `mean_hd95`.

    Distances are in millimetres, those of pictures in pixels.

    Predictions are brought to the grid of the files first. Conventions, which move published means:

    - An organ that a label map does not have is left out for that volume, whatever was predicted (MONAI's
      `ignore_empty`); one that no volume has is left out altogether.
    - Voxels that the data set ignores (`ignore_label`) are none, neither of the prediction nor of the truth.
    - An organ that is there and was missed has Dice 0 and, as distance, the diagonal of the volume.
    - The mean is that of the organs' means. The background does not count unless `include_background`.

    Args:
        classes: names, the background's first; the data set's by default, from which they may not differ.
        include_background: count it as an organ.
        hd95: measure distances too; they take longer than the rest.
        output_dir: folder for the predictions, one file for each image and named as it (in sub-folders where images
            share a name); each is written whole as soon as it is there, so that a volume that fails later costs no
            other. And for `cases.csv`, the metrics of each volume, empty where its label map lacks the organ.
        collect_device: MMEngine's.
        prefix: of the names.
    """

    default_prefix = ""  # none, and MMEngine does not warn
    unit = "mm"  # of distances

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        include_background: bool = False,
        hd95: bool = True,
        output_dir: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        if classes is not None and len(set(classes)) != len(classes):
            raise ConfigError(f"`classes` has a name twice: {', '.join(classes)}")
        self.classes, self.include_background = None if classes is None else tuple(classes), include_background
        self.hd95, self.output_dir = hd95, output_dir

    @property
    def organs(self) -> dict[int, str]:
        """What is measured: names by id.

        Raises:
            ConfigError: there are no names, or they are not the data set's.
        """
        known = (self.dataset_meta or {}).get("classes")
        classes = known if self.classes is None else self.classes
        if not classes:
            raise ConfigError("VolumeMetrics has no `classes`, nor has the data set")
        if known and tuple(known) != tuple(classes):
            raise ConfigError(
                f"VolumeMetrics has the `classes` {', '.join(classes)}, the data set {', '.join(known)}: leave them out"
            )
        return dict(list(enumerate(classes))[0 if self.include_background else 1 :])

    def check_samples(self, infos: Iterable[dict]) -> None:
        """Look at what is about to be measured, of all processes; the engine calls it before the first volume.

        Args:
            infos: of `VolumeDataset.get_data_info`.

        Raises:
            ConfigError: the classes are not those of the data set.
        """
        _ = self.organs  # before hours of work

    def output_files(self, infos: Iterable[dict]) -> Iterator[tuple[Path, str]]:
        """Files that are going to be written, and the image of each; the engine sees that none is an input."""
        if self.output_dir is not None:
            folder = Path(self.output_dir)
            yield from ((folder / info["prediction"], info["img_path"]) for info in infos)
            yield from ((folder / name, name) for name in ("metrics.json", _CASES))

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Write and measure the predictions of a batch."""
        for sample in data_samples:
            case: Case = sample["case"]
            labels = case.on_original_grid(sample["labels"])
            if self.output_dir is not None:
                case.save(labels, Path(self.output_dir))
            self.results.append(dict(image=case.image) | ({} if case.truth is None else self._of(labels, case)))

    def _of(self, labels: Tensor, case: Case) -> dict[str, float]:
        """The metrics of a case, NaN for organs that its label map does not have."""
        self.unit = case.unit
        truth, found = case.truth.to(labels.device), {}
        counted = None if case.ignored is None else ~case.ignored.to(labels.device)
        for index, organ in self.organs.items():
            one, other = labels == index, truth == index
            if counted is not None:
                one, other = one & counted, other & counted
            found[f"dice/{organ}"] = dice(one, other)
            if self.hd95:
                found[f"hd95/{organ}"] = hausdorff95(one, other, case.spacing)
        return found

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Means over the volumes, and over the organs; logs the table, and writes that of the cases."""
        if self.output_dir is not None:
            self._write_cases(results, Path(self.output_dir) / _CASES)
        metrics = {}
        for name in ("dice", "hd95"):
            means = {}
            for organ in self.organs.values():
                values = [one[f"{name}/{organ}"] for one in results if f"{name}/{organ}" in one]
                if values := [value for value in values if not math.isnan(value)]:
                    means[organ] = sum(values) / len(values)
            if means:
                metrics[f"mean_{name}"] = sum(means.values()) / len(means)
            metrics |= {f"{name}/{organ}": value for organ, value in means.items()}
        if metrics:
            print_log("\n" + self._table(metrics), logger="current")
        else:
            print_log("no volume has an organ in its label map: there is nothing to measure", logger="current")
        return metrics

    def _write_cases(self, results: Sequence[dict], path: Path) -> None:
        names = [f"{name}/{organ}" for name in ("dice", "hd95") for organ in self.organs.values()]
        names = [name for name in names if self.hd95 or not name.startswith("hd95")]

        def write(file: Path) -> None:
            with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
                rows = csv.writer(text)
                rows.writerow(["image", *names])
                for case in results:
                    values = [case.get(name, math.nan) for name in names]
                    rows.writerow([case["image"], *("" if math.isnan(value) else value for value in values)])

        write_atomically(path, write)

    def _table(self, metrics: dict[str, float]) -> str:
        rows = [(organ, f"dice/{organ}", f"hd95/{organ}") for organ in self.organs.values()]
        rows.append(("mean", "mean_dice", "mean_hd95"))
        width = max(len(row[0]) for row in rows)
        distance = f"HD95 ({self.unit})"
        lines = [f"{'organ':{width}}  Dice (%)  {distance}"]
        for organ, first, second in rows:
            one = f"{100 * metrics[first]:.2f}" if first in metrics else "–"
            two = f"{metrics[second]:.2f}" if second in metrics else "–"
            lines.append(f"{organ:{width}}  {one:>8}  {two:>{len(distance)}}")
        return "\n".join(lines)
