"""The split of BTCV's labelled volumes that papers call "Synapse": 18 to train on, 12 to test on.

Of the 13 organs 8 are asked for; their ids in the files stay those of BTCV.
"""

from pathlib import Path

from .btcv import Btcv, check_btcv, splits
from .layout import Progress, Report
from .volume_sets import CaseFiles

__all__ = ["EXPECTED", "check_synapse"]

# TransUNet's lists, https://github.com/Beckschen/TransUNet; its training set's order is that of the numbers.
_TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
EXPECTED = Btcv(training=tuple(n for n in (*range(1, 11), *range(21, 41)) if n not in _TEST), validation=_TEST, test=())


def check_synapse(
    root: str | Path, jobs: int | None = None, progress: Progress | None = None, expected: Btcv = EXPECTED
) -> tuple[Report, dict[str, list[CaseFiles]]]:
    """Check BTCV's labelled volumes (see `check_btcv`) and split them as TransUNet does.

    Args:
        root: as for `check_btcv`.
        jobs: threads that read.
        progress: called with the numbers of cases read and to read.
        expected: case numbers of each split.

    Returns:
        The report, and the cases of "training" and "validation"; none of them if one is missing.

    Raises:
        LayoutError: the folder is none of a set of labelled volumes.
        ImportError: nibabel, of the extra `medical`, is missing.
    """
    report, cases = check_btcv(root, jobs, expected, progress=progress)
    if not report.ok:
        return report, {}
    chosen = [[f"{n:04d}" for n in numbers] for numbers in (expected.training, expected.validation)]
    return report, splits(cases, *chosen)
