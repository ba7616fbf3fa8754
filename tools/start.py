"""From a fresh clone to a finished job, with Python and pip alone.

    python tools/start.py digits [arguments of `vision-ssm train-digits`]
    python tools/start.py digits-segmentation [arguments of `vision-ssm train`]
    python tools/start.py digits-detection [arguments of `vision-ssm train`]
    python tools/start.py test [arguments of pytest]

Makes a virtual environment in `.venv` (or the folder that VISION_SSM_VENV names), installs the package with what the
job needs, and runs it. The second time the installation is skipped where nothing that it depends on has changed.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JOBS = {
    "digits": ("demo", ["-m", "vision_ssm", "train-digits"]),
    "digits-segmentation": ("demo,openmmlab", ["tools/train.py", "configs/demo/digits_segmentation.py", "--resume"]),
    "digits-detection": ("demo,openmmlab", ["tools/train.py", "configs/demo/digits_detection.py", "--resume"]),
    "test": ("dev", ["-m", "pytest", "-n", "auto", "--maxprocesses", "8", "--dist", "loadfile"]),
}
# Installed after the package, one by one. nnU-Net's dependencies ask for an older timm than ours, so that pip resolves
# no set with both; they run with the newer one, which therefore comes last.
AFTERWARDS = {"dev": (["nnunetv2>=2.8.1,<3"], ["--no-deps", "--upgrade", "timm>=1.0.31"])}


def _fingerprint(extra: str) -> str:
    """Changes when the installed package would."""
    files = [ROOT / "pyproject.toml", *(p for p in (ROOT / "kernels").rglob("*") if p.is_file())]
    digest = hashlib.sha256(f"{extra} {AFTERWARDS.get(extra)}".encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _environment(extra: str) -> Path:
    """The environment's Python, with the package installed."""
    folder = Path(os.environ.get("VISION_SSM_VENV", ROOT / ".venv"))
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making a virtual environment in {folder}", flush=True)
        venv.create(folder, with_pip=True)
    stamps = {name: folder / f".vision_ssm-{name}" for name in (extra, "dev")}  # "dev" holds all the others
    if not any(stamp.exists() and stamp.read_text() == _fingerprint(name) for name, stamp in stamps.items()):
        print("installing vision_ssm and what it needs (PyTorch is large: the first time takes minutes)", flush=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "torch", "torchvision", "timm>=1.0.31"], check=True)  # together, so that they match
        subprocess.run([*pip, "--editable", f"{ROOT}[{extra}]"], check=True)
        for requirements in AFTERWARDS.get(extra, ()):
            subprocess.run([*pip, *requirements], check=True)
        stamps[extra].write_text(_fingerprint(extra))
    return python


def main() -> int:
    """Run the job that the command line names; returns its exit status."""
    if sys.version_info < (3, 10):  # noqa: UP036 - this runs before pip could say so
        print("Python 3.10 or newer is needed", file=sys.stderr)
        return 2
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        print(__doc__, file=sys.stderr)
        return 2
    extra, command = JOBS[sys.argv[1]]
    try:
        python = _environment(extra)
    except subprocess.CalledProcessError as error:
        print(f"the installation failed (pip exited with {error.returncode})", file=sys.stderr)
        return 1
    return subprocess.run([str(python), *command, *sys.argv[2:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
