"""Compile the CPU kernels into a source tree, for use without installing the package (needs CMake and a compiler)."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Build into vision_ssm/_native; returns the exit status."""
    if shutil.which("cmake") is None:
        print("CMake is missing: pip install cmake", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as build:
        subprocess.run(["cmake", "-S", str(ROOT / "kernels"), "-B", build, "-DCMAKE_BUILD_TYPE=Release"], check=True)
        subprocess.run(["cmake", "--build", build, "--config", "Release", "--parallel"], check=True)
        built = [p for p in Path(build).rglob("*vision_ssm_cpu.*") if p.suffix in (".so", ".dylib", ".dll")]
        if not built:
            print("nothing was built: see the messages above", file=sys.stderr)
            return 1
        target = ROOT / "vision_ssm" / "_native"
        target.mkdir(exist_ok=True)
        for library in built:
            (target / library.name).unlink(missing_ok=True)
            shutil.copy2(library, target)
            print(target / library.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
