"""No run writes over what it reads."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mmengine import Config
from mmengine.runner import BaseLoop

from ..files import written_over
from .data_check import leaves
from .loader import built
from .order import DataError

__all__ = ["check_outputs"]

_RESULTS = ("bbox.json", "segm.json", "proposal.json", "gt.json")  # of MMDetection's CocoMetric
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_PARTS = (*_LOADERS, "val_evaluator", "test_evaluator", "model", "load_from")  # that name files to read


def check_outputs(cfg: Config, loop: BaseLoop) -> None:
    """Compare the files that a validation or test is about to write with all that the config's run reads.

    Args:
        cfg: of the run, whose other data sets are looked at, too.
        loop: built.

    Raises:
        DataError: a file would be written over, or the results of two samples have one name.
    """
    dataset = loop.dataloader.dataset
    outputs: dict[Path, str] = {}
    for path, source in _outputs(cfg, loop.evaluator.metrics, dataset):
        if (other := outputs.setdefault(path, source)) != source:
            raise DataError(f"the predictions of {other} and {source} have one name, {path}: they need two folders")
    tables = [path for path in outputs if path.suffix in (".csv", ".json")]
    # Samples of other data sets are listed only where a picture or volume is there already: of COCO it takes long.
    problem = written_over(tables, _near(cfg, dataset)) or written_over(
        outputs.keys() - set(tables), itertools.chain(_near(cfg, dataset), _far(cfg))
    )
    if problem:
        raise DataError(problem)


def _infos(dataset) -> Iterator[dict]:
    for leaf in leaves(dataset):
        if hasattr(leaf, "get_data_info"):
            yield from (leaf.get_data_info(i) for i in range(len(leaf)))


def _images(dataset) -> Iterator[str]:
    yield from (info["img_path"] for info in _infos(dataset) if isinstance(info.get("img_path"), str))


def _outputs(cfg: Config, metrics: Sequence, dataset) -> Iterator[tuple[Path, str]]:
    """Files that metrics and drawings are written to, and the image of each."""
    for metric in metrics:
        if hasattr(metric, "output_files"):
            yield from metric.output_files(_infos(dataset))
        elif folder := getattr(metric, "output_dir", None):  # MMSegmentation's
            yield from ((Path(folder) / f"{Path(image).stem}.png", image) for image in _images(dataset))
            yield Path(folder) / "metrics.json", ""
        elif prefix := getattr(metric, "outfile_prefix", None):  # MMDetection's
            yield from ((Path(f"{prefix}.{result}"), "") for result in _RESULTS)
            yield Path(prefix).parent / "metrics.json", ""
    drawing = (cfg.get("default_hooks") or {}).get("visualization") or {}
    if folder := drawing.get("test_out_dir"):
        yield from ((Path(folder) / Path(image).name, image) for image in _images(dataset))


def _near(cfg: Config, dataset) -> Iterator[str | Path]:
    """Files that the config names, and those of the samples."""
    yield from filter(None, [cfg.filename])
    for part in _PARTS:
        yield from _named(cfg.get(part), Path())
    yield from _files(dataset)


def _far(cfg: Config) -> Iterator[str]:
    """Files of the samples of all data sets of a config."""
    for loader in _LOADERS:
        if isinstance(other := (cfg.get(loader) or {}).get("dataset"), Mapping):
            with suppress(Exception):  # that of another job, which need not be here
                yield from _files(built(other))


def _files(dataset) -> Iterator[str]:
    for leaf in leaves(dataset):
        if hasattr(leaf, "input_files"):
            yield from leaf.input_files()
        else:
            yield from (info[key] for info in _infos(leaf) for key in ("img_path", "seg_map_path") if info.get(key))


def _named(node, root: Path) -> Iterator[Path]:
    """Texts of a config that may be paths, by themselves and in the `data_root` beside them."""
    if isinstance(node, Mapping):
        root = Path(node["data_root"]) if isinstance(node.get("data_root"), str) else root
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for one in node:
            yield from _named(one, root)
    elif isinstance(node, str):
        yield from (Path(node), root / node)
