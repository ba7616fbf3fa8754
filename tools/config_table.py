"""Write the table of configs in configs/README.md from the `published` entry of each.

python tools/config_table.py            # write
python tools/config_table.py --check    # exit 1 if the file differs from what would be written
"""

import argparse
import runpy
import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_BEGIN, _END = "<!-- configs: tools/config_table.py -->", "<!-- /configs -->"


def _rows(folder: str) -> list[tuple[str, dict]]:
    found = ((path, runpy.run_path(str(path)).get("published")) for path in sorted((CONFIGS / folder).glob("*.py")))
    return [(f"[{path.stem}]({folder}/{path.name})", published) for path, published in found if published]


def _mark(published: dict) -> str:
    return " (unverified)" if "unverified" in published["source"] else ""


def _weights(published: dict) -> str:
    return f"[file]({published['checkpoint']})" if published["checkpoint"] else "none"


def _networks(folder: str) -> list[tuple[str, str, str, dict]]:
    """Link, network and data of a folder's configs of whole networks, and their content."""
    found = []
    for path in sorted((CONFIGS / folder).glob("*.py")):
        config = runpy.run_path(str(path))
        if "network" in config.get("model", {}):
            network, _, data = config["__doc__"].splitlines()[0].removesuffix(".").partition(", ")
            found.append((f"[{path.stem}]({folder}/{path.name})", network, data, config))
    return found


def _medical() -> list[str]:
    """Rows of the configs of medical volumes; some have no published figure of their protocol."""
    lines = []
    for link, network, data, config in _networks("medical"):
        published = config.get("published", {})
        figures = " | ".join(str(published.get(key, "–")) for key in ("dice", "hd95"))
        note = published.get("note", "")
        lines.append(f"| {link} | {network} | {data} | {figures} | {note} |")
    return lines


def tables() -> str:
    """The tables of all tasks."""
    lines = ["| ADE20K, UPerNet | mIoU | multi-scale | weights |", "|---|---|---|---|"]
    for name, published in _rows("segmentation"):
        miou = published["mIoU"]
        both = f"{miou['single_scale']}{_mark(published)} | {miou.get('multi_scale', '–')}"
        lines.append(f"| {name} | {both} | {_weights(published)} |")
    lines += ["", "| COCO | box AP | mask AP | weights |", "|---|---|---|---|"]
    for name, published in _rows("detection"):
        both = f"{published['box_AP']}{_mark(published)} | {published['mask_AP']}"
        lines.append(f"| {name} | {both} | {_weights(published)} |")
    lines += ["", "| MMSegmentation, whole networks | network | data |", "|---|---|---|"]
    lines += [f"| {link} | {network} | {data} |" for link, network, data, _ in _networks("segmentation")]
    lines += ["", "| medical | network | data | Dice | HD95 | that figure |", "|---|---|---|---|---|---|", *_medical()]
    return "\n".join(lines)


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    page = CONFIGS / "README.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    current = f"{before}{_BEGIN}\n{tables()}\n{_END}{rest.split(_END)[1]}"
    if current == text:
        return 0
    if args.check:
        print(f"{page.name} is not current: run tools/config_table.py")
        return 1
    page.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
