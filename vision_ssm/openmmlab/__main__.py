"""`python -m vision_ssm.openmmlab SCRIPT [ARGUMENTS]`: a script of MMSegmentation or MMDetection, with the bridge.

The two libraries' own tools import mmcv's compiled operators before they read a config, and with it `custom_imports`.
SCRIPT is a file, or one that a library brings: `mmseg/tools/train.py`, `mmdet/tools/test.py`.
"""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path


def _found(script: str) -> Path:
    """The file of a script, in the folder `.mim` where an installed library keeps its tools."""
    library, *rest = Path(script).parts
    spec = find_spec(library) if rest and library.isidentifier() else None
    places = [Path(folder, ".mim", *rest) for folder in (spec and spec.submodule_search_locations) or ()]
    for place in (Path(script), *places):
        if place.is_file():
            return place
    raise SystemExit(f"no script {script}: expected a file, or one of a library's, such as mmdet/tools/test.py")


def main(arguments: list[str]) -> None:
    """Run a script as Python would, after the bridge is in place."""
    if not arguments or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__)
    script = _found(arguments[0])
    sys.argv = [str(script), *arguments[1:]]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
