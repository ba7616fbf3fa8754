"""Check of the MR volumes of AMOS 2022 ("Abdominal Multi-Organ Segmentation"): 15 organs.

The release holds 200 CT and 40 MR volumes to train on and 100 and 20 to validate on, all with labels.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from .layout import Progress, Report, find_root
from .volume_sets import CaseFiles, check_cases, list_files, pair_files

__all__ = ["COUNTS", "LABELS", "check_amos_mr"]

LABELS = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
    "prostate or uterus",
)  # fmt: skip
COUNTS = {"training": 40, "validation": 20}
_FOLDERS = {"training": ("imagesTr", "labelsTr"), "validation": ("imagesVa", "labelsVa")}
_MR = re.compile(r"(amos_(?!0500)0[56]\d\d)\.nii\.gz")  # up to 500 they are CT


def check_amos_mr(
    root: str | Path,
    jobs: int | None = None,
    progress: Progress | None = None,
    expected: Mapping[str, int] = COUNTS,
) -> tuple[Report, dict[str, list[CaseFiles]]]:
    """Check the MR volumes: numbers, pairs of image and label, and every voxel. CT volumes are left alone.

    Args:
        root: holds `imagesTr`, `labelsTr`, `imagesVa` and `labelsVa`.
        jobs: threads that read.
        progress: called with the numbers of cases read and to read.
        expected: number of cases of each split.

    Returns:
        The report, and the cases of each split.

    Raises:
        LayoutError: there is no such folder, or it lies elsewhere.
        ImportError: nibabel, of the extra `medical`, is missing.
    """
    root = find_root(root, [folder for pair in _FOLDERS.values() for folder in pair])
    report = Report(str(root))
    splits = {}
    for split, where in _FOLDERS.items():
        images, labels = (list_files(root, folder, _MR, report) for folder in where)
        splits[split] = list(pair_files(images, labels, where, report, expected[split]).values())
    cases = [case for chosen in splits.values() for case in chosen]
    check_cases(root, cases, report, len(LABELS) - 1, jobs, progress)
    return report, splits
