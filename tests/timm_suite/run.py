"""Run timm's own model tests on the models of this package.

    python tests/timm_suite/run.py [--models PATTERN] [--sdist PATH] [pytest options]

timm's wheel lacks its tests, its source archive has them. The archive of the installed version is taken from `--sdist`
or VISION_SSM_TIMM_SDIST (a folder or a .tar.gz), or else downloaded once with pip into the user's cache.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = "tests/test_models.py"


def download(timm: str) -> Path:
    """The source archive of a timm version, downloaded unless the cache has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision_ssm"
    archive = cache / f"timm-{timm}.tar.gz"
    if not archive.is_file():
        options = ["--no-deps", "--no-binary", ":all:", "--dest", str(cache)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, f"timm=={timm}"], check=True)
    return archive


def read(sdist: Path, name: str) -> str:
    """The text of one file of a source archive, or of its unpacked folder."""
    if sdist.is_dir():
        return (sdist / name).read_text(encoding="utf-8")
    with tarfile.open(sdist) as archive:  # nothing is unpacked: one member is read
        member = next((m for m in archive if m.isfile() and m.name.partition("/")[2] == name), None)
        if member is None:
            raise FileNotFoundError(f"{sdist} has no {name}")
        return archive.extractfile(member).read().decode("utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the tests; returns pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="*_test", help="shell pattern of model names (default: %(default)s)")
    parser.add_argument("--sdist", type=Path, default=os.environ.get("VISION_SSM_TIMM_SDIST"), help="timm's source")
    args, options = parser.parse_known_args(argv)
    installed = version("timm")
    sdist = args.sdist or download(installed)
    found = re.search(r"^Version: (\S+)", read(sdist, "PKG-INFO"), re.MULTILINE)
    if found is None or found[1] != installed:
        parser.error(f"{sdist} is timm {found and found[1]}, installed is {installed}")
    if (package := find_spec("vision_ssm")) is None or package.origin is None:
        parser.error("vision_ssm is not installed")

    # Away from this repository, so that its pytest settings and conftest files have no say.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(Path(package.origin).parents[1])])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pytest.ini").write_text("[pytest]\n")
        (Path(folder) / "test_models.py").write_text(read(sdist, TESTS), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-p", "timm_suite.plugin", f"--vision-ssm-models={args.models}"]
        command += ["-q", "-p", "no:cacheprovider", "--durations=5", *options, "test_models.py"]
        return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
