"""Check of ACDC ("Automated Cardiac Diagnosis Challenge", MICCAI 2017): hearts in cine MR, at two instants each.

100 labelled patients in `training`; `Info.cfg` of each names the end-diastolic and the end-systolic frame.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .layout import Progress, Report, Wrong, find_root
from .volume_sets import CaseFiles, check_cases

__all__ = ["LABELS", "SPLITS", "check_acdc"]

LABELS = ("background", "right ventricle", "myocardium", "left ventricle")
# Patients of the lists of SSL4MIS (https://github.com/HiLab-git/SSL4MIS), which Mamba-UNet ships, too.
_VALIDATION = (2, 19, 28, 30, 39, 45, 78, 82, 85, 87)
_TEST = (1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93)
SPLITS = {
    "training": tuple(n for n in range(1, 101) if n not in (*_VALIDATION, *_TEST)),
    "validation": _VALIDATION,
    "test": _TEST,
}
_FOLDERS = ("training", "database/training", "ACDC/database/training")


def check_acdc(
    root: str | Path,
    jobs: int | None = None,
    progress: Progress | None = None,
    expected: Mapping[str, Sequence[int]] = SPLITS,
) -> tuple[Report, dict[str, list[CaseFiles]]]:
    """Check the labelled patients: two frames with their labels each, and every voxel.

    Args:
        root: holds `training`, or the `database` that holds it.
        jobs: threads that read.
        progress: called with the numbers of cases read and to read.
        expected: numbers of the patients of each split.

    Returns:
        The report, and the cases of each split: of each patient the end-diastolic frame, then the end-systolic one.

    Raises:
        LayoutError: there is no such folder, or it lies elsewhere.
        ImportError: nibabel, of the extra `medical`, is missing.
    """
    root = Path(root)
    top = next((name for name in _FOLDERS if (root / name).is_dir()), _FOLDERS[0])
    find_root(root, (top,))
    report = Report(str(root))
    report.found[top] = sum(1 for _ in (root / top).glob("patient*/"))
    missing: list[str] = []
    splits = {
        split: [case for number in numbers for case in _patient(root, top, number, report, missing)]
        for split, numbers in expected.items()
    }
    report.lack(top, missing)
    cases = [case for chosen in splits.values() for case in chosen]
    check_cases(root, cases, report, len(LABELS) - 1, jobs, progress)
    return report, splits


def _patient(root: Path, top: str, number: int, report: Report, missing: list[str]) -> list[CaseFiles]:
    """The two cases of a patient; what is not there is added to the names of missing files."""
    name = f"patient{number:03d}"
    folder = root / top / name
    if not folder.is_dir():
        missing.append(name)
        return []
    info = folder / "Info.cfg"
    if not info.is_file():
        missing.append(f"{name}/{info.name}")
        return []
    text = info.read_text(encoding="utf-8", errors="replace")
    frames = dict(re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", text, re.MULTILINE))
    cases = []
    for phase in ("ED", "ES"):
        if phase not in frames:
            report.wrong.append(Wrong(f"{top}/{name}/{info.name}", f"names no frame {phase}", f"a line {phase}: 1"))
            continue
        frame = f"{name}_frame{int(frames[phase]):02d}"
        files = [f"{name}/{frame}{ending}.nii.gz" for ending in ("", "_gt")]
        gone = [file for file in files if not (root / top / file).is_file()]
        missing += gone
        if not gone:
            cases.append(CaseFiles(*(f"{top}/{file}" for file in files)))
    return cases
