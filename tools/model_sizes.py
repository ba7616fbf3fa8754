"""Record how many entries each registered model has: by it an error finds the model that a checkpoint is for.

python tools/model_sizes.py            # write
python tools/model_sizes.py --check    # exit 1 if the file differs from what would be written
"""

import argparse
import json
import sys
from pathlib import Path

import timm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vision_ssm import model_names  # noqa: E402
from vision_ssm.checkpoints import count_entries  # noqa: E402

FILE = ROOT / "vision_ssm" / "checkpoints" / "model_sizes.json"


def size(name: str) -> list[int]:
    """a, b and c of the a + b n + c n^2 entries of a model with n classes."""
    two, three, four = (
        count_entries(timm.create_model(name, num_classes=classes, device="meta").state_dict()) for classes in (2, 3, 4)
    )
    squared = (four - 2 * three + two) // 2
    each = three - two - 5 * squared
    return [two - 2 * each - 4 * squared, each, squared]


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is out of date")
    args = parser.parse_args()
    lines = (f"  {json.dumps(name)}: {json.dumps(size(name))}" for name in sorted(model_names()))
    content = "{\n" + ",\n".join(lines) + "\n}\n"
    if args.check:
        if FILE.is_file() and FILE.read_text(encoding="utf-8") == content:
            return 0
        print(f"{FILE.relative_to(ROOT)} is out of date: run python tools/model_sizes.py")
        return 1
    FILE.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
