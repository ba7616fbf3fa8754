"""Check of BTCV's abdomen ("Beyond the Cranial Vault", Synapse syn3193805) and of own sets in its layout.

30 labelled CT volumes with 13 organs and 20 without labels. The set needs a registration, so nothing is downloaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .layout import Progress, Report
from .volume_sets import CaseFiles, Cases, check_cases, find_cases

__all__ = ["LABELS", "TEST", "TRAINING", "VALIDATION", "Btcv", "case", "check_btcv", "splits"]

LABELS = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
# The split of the data list `dataset_0.json` of MONAI's tutorials of UNETR and Swin UNETR.
TRAINING = (*range(1, 11), *range(21, 35))
VALIDATION = tuple(range(35, 41))
TEST = tuple(range(61, 81))


@dataclass(frozen=True)
class Btcv:
    """What is expected: case numbers of each split."""

    training: tuple[int, ...] = TRAINING
    validation: tuple[int, ...] = VALIDATION
    test: tuple[int, ...] = TEST


def case(number: int, labelled: bool = True) -> CaseFiles:
    """The files of a case number, in the layout with `imagesTr`."""
    if not labelled:
        return CaseFiles(f"imagesTs/img{number:04d}.nii.gz")
    return CaseFiles(f"imagesTr/img{number:04d}.nii.gz", f"labelsTr/label{number:04d}.nii.gz")


def check_btcv(
    root: str | Path,
    jobs: int | None = None,
    expected: Btcv | None = None,
    labels: Sequence[str] = LABELS,
    progress: Progress | None = None,
    ignore_label: int | None = None,
) -> tuple[Report, Cases]:
    """Check a folder of volumes: names, pairs of image and label, and every voxel.

    Args:
        root: holds `imagesTr` and `labelsTr`, or what RawData.zip holds: `Training/img` and `Training/label`. In a set
            of one's own images may have several channels, in files of four dimensions or in nnU-Net's
            (`case_0000.nii.gz`, `case_0001.nii.gz` beside the label `case.nii.gz`).
        jobs: threads that read.
        expected: what a complete set holds; None for a set of one's own, of any names and number.
        labels: names of the classes, the background first.
        progress: called with the numbers of cases read and to read.
        ignore_label: id that labels may hold, too.

    Returns:
        The report, and the cases that the set consists of.

    Raises:
        LayoutError: the folder is none of a set of labelled volumes.
        ImportError: nibabel, of the extra `medical`, is missing.
    """
    report = Report(str(root))
    cases = find_cases(root, report)
    if expected is not None:
        _compare(cases, report, expected)
    elif not cases.labelled:
        report.lack(cases.where[0], ["an image with a label"])
    every = [*cases.labelled.values(), *cases.test.values()]
    own = expected is None
    check_cases(cases.folder, every, report, len(labels) - 1, jobs, progress, channels=own, ignore_label=ignore_label)
    return report, cases


def _compare(cases: Cases, report: Report, expected: Btcv) -> None:
    """Keep the expected cases; what else there is goes to the report."""
    numbers = {f"{n:04d}" for n in (*expected.training, *expected.validation)}
    # A case with but one of its two files is in the report already.
    halves = {key for wrong in report.wrong for key in numbers if f"{key}.nii.gz" in wrong.file}
    missing = numbers - cases.labelled.keys() - halves
    report.lack(cases.where[0], [f"img{key}.nii.gz" for key in missing])
    report.lack(cases.where[1], [f"label{key}.nii.gz" for key in missing])
    test = {f"{n:04d}" for n in expected.test}
    if cases.test:
        report.lack(cases.where[2], [f"img{key}.nii.gz" for key in test - cases.test.keys()])
    elif test:
        report.notes.append(f"no images in {cases.where[2]}: training and validation need none")
    if not test:  # a set of BTCV's labelled volumes alone
        cases.test.clear()
    for found, known in ((cases.labelled, numbers), (cases.test, test)):
        for key in sorted(found.keys() - known):
            report.notes.append(f"{found.pop(key).image} is not of BTCV and is left out")


def splits(cases: Cases, training: Sequence[str], validation: Sequence[str]) -> dict[str, list[CaseFiles]]:
    """Cases of each split of a data list, by their keys."""
    chosen = {"training": training, "validation": validation}
    return {
        **{split: [cases.labelled[key] for key in keys] for split, keys in chosen.items()},
        "test": list(cases.test.values()),
    }
