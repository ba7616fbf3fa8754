"""The house: what may import what, how long a file may be, what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vision_ssm"

# Lower floors first; a module imports only from its own floor's folder or from below.
FLOORS = (
    "errors", "ops", "scan", "layers", "cards", "checkpoints", "models", "medical", "registry", "nnunet", "files",
    "pictures", "command_line", "data", "engine", "volumes", "openmmlab", "demo", "benchmark", "cli",
)  # fmt: skip
# Third parties that only one folder may import, and that must not be needed anywhere else.
ONLY_IN = {
    "rich": ("cli",),
    "matplotlib": ("demo", "scan"),
    "sklearn": ("demo",),
    "mambapy": ("benchmark",),
    "einops": ("benchmark",),
    "mamba_ssm": ("benchmark",),
    "selective_scan_cuda": ("benchmark",),
    "fla": ("benchmark",),
    "mmengine": ("engine", "volumes", "openmmlab", "demo"),
    "mmcv": ("openmmlab",),
    "mmseg": ("openmmlab", "demo"),
    "mmdet": ("openmmlab", "demo"),
    "monai": ("volumes",),
    "nibabel": ("data", "volumes", "demo"),
    "nnunetv2": ("nnunet",),
    "triton": ("ops",),
}
# A checkpoint that fits nothing asks the registry for the model that it is for.
UPWARD = {("checkpoints", "registry")}


def _imports(file: Path):
    """(level, module) of every import in a file; level 0 is absolute."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def _floor(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(file):
    here = _floor(file)
    if here not in FLOORS:  # __init__ and __main__ of the package
        return
    depth = len(file.relative_to(PACKAGE).parts)
    for level, module in _imports(file):
        top = module.split(".")[0]
        if level == 0:
            assert here in ONLY_IN.get(top, (here,)), f"{here} imports {top}"
        elif level == depth and top in FLOORS and top != here:
            allowed = FLOORS.index(top) < FLOORS.index(here) or (here, top) in UPWARD
            assert allowed, f"{here} imports {top}, which lies above it"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def _python(code: str, **env: str) -> str:
    import os

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | env
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_needs_no_extra_and_no_kernel():
    code = """
import sys
names = ("rich", "matplotlib", "sklearn", "fvcore", "mambapy", "mamba_ssm", "einops", "mmengine", "mmcv", "nibabel")
for name in (*names, "monai"):
    sys.modules[name] = None
import warnings, torch, vision_ssm
from vision_ssm.ops import cpu
cpu.library = lambda: None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import timm
    y = timm.create_model("vmamba_test").eval()(torch.randn(1, 3, 64, 64))
    timm.create_model("vmamba_test").eval()(torch.randn(1, 3, 64, 64))
messages = [str(w.message) for w in caught if "slower chunked backend" in str(w.message)]
print(len(messages), y.shape[1], "tools/build_kernels.py" in messages[0])
"""
    assert _python(code).split() == ["1", "1000", "True"]


def test_modules_of_extras_are_not_imported():
    code = """
import sys, vision_ssm
names = ("rich", "matplotlib", "sklearn", "fvcore", "einops", "mambapy", "monai", "nibabel", "mmengine", "mmcv")
print([m for m in (*names, "nnunetv2") if m in sys.modules])
"""
    before = "import sys, timm; print([m for m in ('rich', 'matplotlib') if m in sys.modules])"
    assert _python(code).strip() in ("[]", _python(before).strip())


@pytest.mark.parametrize("tool", ["model_card.py", "readme_figures.py", "config_table.py"])
def test_generated_files_are_current(tool):
    check = [sys.executable, str(ROOT / "tools" / tool), "--check"]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
