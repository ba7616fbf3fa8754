"""Build a wheel of mamba_ssm with its CUDA kernel `selective_scan_cuda`, the benchmark's peer, for one GPU generation.

    python tools/gpu/build_mamba_ssm.py                                     # for the running Python and its torch
    python tools/gpu/build_mamba_ssm.py --python python3.12 --torch 2.11.0  # for others, in an environment of their own
    python tools/gpu/build_mamba_ssm.py --configure-only                    # write and check the compile commands only

Needs nvcc and a C++ compiler, but no GPU. The sources are the sdist, which pip downloads. Its setup.py compiles for up
to nine architectures, whatever TORCH_CUDA_ARCH_LIST says, and in C++17, which newer versions of torch refuse; those
choices are taken out of the unpacked copy, and nothing else. Compiling takes long: nine files of heavy templates, one
at a time by default.

Verified with mamba_ssm 2.3.2.post1, nvcc 13.0, Python 3.12 and torch 2.11.0 (CUDA 13.0) for 9.0: a wheel of 39 MB after
18 minutes, one file at a time; cuobjdump lists sm_90 alone in its library, no PTX; it loads without a GPU.

Install the wheel with `pip install --no-deps`: the benchmark takes the kernel and one class out of it, and the package
would want much more for its language models.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

_ARCHITECTURE = re.compile(r'cc_flag\.append\("(?:-gencode|arch=compute_\w+,code=sm_\w+)"\)')
_STANDARD = re.compile(r'"-std=c\+\+\d+"(?:, *)?')
_ENVIRONMENT = """
import sysconfig, torch
print(torch.__version__, torch.version.cuda, sysconfig.get_paths()["purelib"], sep="\\n")
"""
_CONFIGURE = """
import runpy, sys
from torch.utils import cpp_extension
def stop(*args, **kwargs):
    raise SystemExit(0)
cpp_extension._run_ninja_build = stop  # after it has been told what to run
sys.argv = ["setup.py", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""


class BuildError(Exception):
    """What is missing or went wrong, in one sentence."""


def without_choices(setup: str) -> str:
    """The text of setup.py without its choice of architectures and of the C++ standard: TORCH_CUDA_ARCH_LIST is then
    heard, and torch adds the standard that it needs.

    Raises:
        BuildError: it names them in a way that is not known here.
    """
    setup, found = _ARCHITECTURE.subn("pass", setup)
    if not found or "arch=compute" in setup:
        raise BuildError("setup.py of this version chooses architectures in another way: see `_ARCHITECTURE`")
    return _STANDARD.sub("", setup)


def architectures(text: str) -> set[str]:
    """The architectures named in compile commands."""
    return set(re.findall(r"(?:code|arch)=(?:sm|compute)_(\w+)", text))


def _cuda_home() -> Path:
    """The CUDA toolkit. What is on the PATH may be a script that starts nvcc from elsewhere."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parents[1]]
    for folder in map(Path, filter(None, candidates)):
        if (folder / "bin" / "nvcc").is_file() and (folder / "include" / "cuda_runtime.h").is_file():
            return folder
    raise BuildError("no CUDA toolkit was found: set CUDA_HOME to a folder with bin/nvcc and include/cuda_runtime.h")


def _environment(python: str, torch: str | None, folder: Path) -> str:
    """A Python with torch and what setup.py imports; with `torch`, one of its own."""
    if torch is None:
        return shutil.which(python) or python
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    made = str(folder / "bin" / "python")
    print(f"installing torch {torch} (it is large)", flush=True)
    packages = [f"torch=={torch}", "setuptools", "wheel", "packaging", "ninja", "numpy"]
    subprocess.run([made, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages], check=True)
    return made


def _settings(python: str, cuda_home: Path, capability: str, jobs: int) -> dict[str, str]:
    """The environment variables of the build.

    Raises:
        BuildError: this Python has no torch for the toolkit's CUDA.
    """
    found = subprocess.run([python, "-c", _ENVIRONMENT], capture_output=True, text=True)
    if found.returncode:
        raise BuildError(f"{python} has no torch: give --torch VERSION to install one")
    torch, cuda, packages = found.stdout.split()
    version = subprocess.run([cuda_home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release (\d+\.\d+)", version.stdout)[1]
    print(f"torch {torch}, built for CUDA {cuda}; nvcc {release}; compute capability {capability}", flush=True)
    if cuda.split(".")[0] != release.split(".")[0]:
        raise BuildError(f"torch {torch} is built for CUDA {cuda}, nvcc is of {release}: the first numbers must agree")
    # Toolkits may come without the libraries' headers, which torch's own headers include; pip's packages have them.
    headers = [str(path) for path in sorted(Path(packages).glob("nvidia/*/include"))]
    return os.environ | dict(
        CUDA_HOME=str(cuda_home),
        CPLUS_INCLUDE_PATH=os.pathsep.join(filter(None, [os.environ.get("CPLUS_INCLUDE_PATH"), *headers])),
        TORCH_CUDA_ARCH_LIST=capability,
        MAX_JOBS=str(jobs),
        MAMBA_FORCE_BUILD="TRUE",  # not a wheel from elsewhere, which is for other versions
        MAMBA_KEEP_CUDA_BUILD="TRUE",  # releases that no longer build the kernel by default read this
    )


def _sources(python: str, sdist: Path | None, folder: Path) -> Path:
    """The unpacked sdist, its setup.py without choices."""
    if sdist is None:
        pip = [python, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        skip = os.environ | dict(MAMBA_SKIP_CUDA_BUILD="TRUE")
        command = [*pip, "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder), "mamba_ssm"]
        subprocess.run(command, check=True, env=skip)
        sdist = next(folder.glob("mamba_ssm-*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    setup = next(folder.glob("mamba_ssm-*/setup.py"))
    setup.write_text(without_choices(setup.read_text(encoding="utf-8")), encoding="utf-8")
    return setup.parent


def _check_commands(source: Path, capability: str) -> None:
    """Raise BuildError unless the compile commands are for this architecture alone."""
    commands = "".join(path.read_text(encoding="utf-8") for path in source.glob("build/temp*/**/build.ninja"))
    wanted = {capability.replace(".", "")}
    if architectures(commands) != wanted:
        raise BuildError(f"the compile commands are for {sorted(architectures(commands))}, not for {sorted(wanted)}")
    count = len(re.findall(r"^build .*: cuda_compile", commands, re.M))
    print(f"{count} CUDA files, architecture {capability} alone", flush=True)


def build(args: argparse.Namespace, folder: Path) -> None:
    """Configure, check, and build the wheel into `args.output`."""
    python = _environment(args.python, args.torch, folder / "env")
    settings = _settings(python, _cuda_home(), args.capability, args.jobs)
    source = _sources(python, args.sdist, folder)
    if subprocess.run([python, "-c", _CONFIGURE], cwd=source, env=settings, stdout=subprocess.DEVNULL).returncode:
        raise BuildError("setup.py failed: see the messages above")
    _check_commands(source, args.capability)
    if args.configure_only:
        print(next(source.glob("build/temp*/**/build.ninja")).read_text(encoding="utf-8"))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation", "-v"]
    nice = ["nice", "-n", "19"] if shutil.which("nice") else []
    subprocess.run([*nice, *pip, "--wheel-dir", str(args.output.resolve()), "."], cwd=source, env=settings, check=True)
    print(*args.output.glob("mamba_ssm-*.whl"), sep="\n")


def main() -> int:
    """Build; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="mamba_ssm's sources (default: pip downloads them)")
    parser.add_argument("--capability", default="9.0", help="compute capability of the GPU (default: 9.0)")
    parser.add_argument("--python", default=sys.executable, help="Python to build for (default: this one)")
    parser.add_argument("--torch", metavar="VERSION", help="install this torch in a new environment and build for it")
    parser.add_argument("--jobs", type=int, default=1, help="files compiled at a time (default: 1)")
    parser.add_argument("--configure-only", action="store_true", help="write, check and print the compile commands")
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), metavar="DIR", help="default: dist")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            build(args, Path(folder))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {error.cmd[0]} failed with {error.returncode}: see the messages above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
