"""Write the model cards and the README's model table from the facts (`model_cards/*.json`).

python tools/model_card.py            # write
python tools/model_card.py --check    # exit 1 if a file differs from what would be written
"""

import argparse
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vision_ssm.cards import backbone_facts, network_facts  # noqa: E402

_BACKBONES = "<!-- models: tools/model_card.py -->", "<!-- /models -->"
_NETWORKS = "<!-- networks: tools/model_card.py -->", "<!-- /networks -->"


def _number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    return "–" if value is None else f"{value / scale:.{digits}f}"


def table() -> str:
    """The README's table of published backbones."""
    lines = [
        "| model | parameters (M) | GFLOPs | ImageNet-1k top-1, published | weights | licence |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in backbone_facts().items():
        weights = f"[file]({f['checkpoint_url']})" if f.get("checkpoint_url") else "none"
        if f.get("checkpoint_url") and f.get("checkpoint_note"):
            weights += " (see card)"
        lines.append(
            f"| [`{name}`](model_cards/{name}.md) | {_number(f['params'], 1e6)} | {_number(f['gflops'])} "
            f"| {_number(f.get('top1'))} | {weights} | {f['license']} |"
        )
    return "\n".join(lines)


def network_table() -> str:
    """The README's table of networks for medical images: one row a family."""
    families: dict[str, list[tuple[str, dict]]] = {}
    for name, f in network_facts().items():
        families.setdefault(f["family"], []).append((name, f))
    lines = ["| family | networks (parameters in M) | paper | licence |", "|---|---|---|---|"]
    for family, entries in families.items():
        names = ", ".join(f"[`{name}`](model_cards/{name}.md) ({_number(f['params'], 1e6)})" for name, f in entries)
        papers = {f["arxiv"]: f"[{f['arxiv']}](https://arxiv.org/abs/{f['arxiv']})" for _, f in entries}
        lines.append(f"| {family} | {names} | {', '.join(papers.values())} | {entries[0][1]['license']} |")
    return "\n".join(lines)


def _flops(f: dict) -> str:
    published = f"; published: {f['gflops_published']}" if "gflops_published" in f else ""
    return f"{f['gflops']} (counted: one for a multiply-add, 9·L·D·N + L·D for a scan{published})"


def _model_name(config: dict) -> str:
    """The model that a config builds on: a backbone, or a whole network."""
    model = config["model"]
    return model["backbone"]["model_name"] if "backbone" in model else model["network"]["name"]


def _dense(name: str) -> list[tuple[str, str]]:
    """The configs that build on a model, with the results that they aim at."""
    rows = []
    for path in sorted((ROOT / "configs").glob("[!_]*/*.py")):
        config = runpy.run_path(str(path))
        published = config.get("published")
        if published is None or _model_name(config) != name:
            continue
        if "dice" in published:
            figure = f"Dice {published['dice']}, {published['note']}"
        elif "mIoU" in published:
            figure = f"mIoU {published['mIoU']['single_scale']}"
        else:
            figure = f"box AP {published['box_AP']}, mask AP {published['mask_AP']}"
        mark = ", unverified" if "unverified" in published["source"] else ""
        link = f"[{path.stem}](../configs/{path.parent.name}/{path.name})"
        rows.append((path.parent.name, f"{link}: {figure} (published{mark}, not measured here)"))
    return rows


def card(name: str, f: dict) -> str:
    """The card of one model."""
    venue = f", {f['venue']}" if f["venue"] else ""
    weights = (
        f"[{f['checkpoint_url'].rsplit('/', 1)[-1]}]({f['checkpoint_url']})"
        if f.get("checkpoint_url")
        else "none known"
    )
    rows = [
        ("family", f["family"]),
        ("paper", f"[{f['paper']}](https://arxiv.org/abs/{f['arxiv']}){venue}"),
        ("reference code", f"[{f['reference']}](https://github.com/{f['reference']})"),
        ("licence of the weights", f["license"]),
        ("parameters", f"{f['params']:,} (counted)"),
        ("GFLOPs at 224x224", _flops(f)),
        (
            "ImageNet-1k top-1 / top-5",
            f"{_number(f.get('top1'))} / {_number(f.get('top5'))} % (published, not measured here)",
        ),
        ("input", "3x224x224, bicubic, crop 0.875, ImageNet mean and std"),
        ("weights", weights),
    ]
    if f.get("checkpoint_note"):
        rows.append(("note on the weights", f["checkpoint_note"]))
    rows += _dense(name)
    rows += [("training of the published weights", f["training"]), ("source of these facts", f["source"])]
    body = "\n".join(f"| {key} | {value} |" for key, value in rows)
    head = "---\ntags:\n- image-classification\n- timm\n- vision-ssm\nlibrary_name: timm\n"
    head += f"license: {f['license'].lower()}\ndatasets:\n- imagenet-1k\n---\n"
    use = (
        "```python\nimport timm\nimport vision_ssm  # registers the models\n\n"
        f'model = timm.create_model("{name}"{", pretrained=True" if f.get("checkpoint_url") else ""}).eval()\n```'
    )
    return f"{head}# {name}\n\n| | |\n|---|---|\n{body}\n\n{use}\n"


def network_card(name: str, f: dict) -> str:
    """The card of a network for medical images."""
    venue = f", {f['venue']}" if f["venue"] else ""
    counted = f"{f['params']:,} (counted)"
    if f.get("params_published") not in (None, f["params"]):
        counted += f"; as published: {f['params_published']:,}"
    url = f.get("checkpoint_url")
    rows = [
        ("family", f["family"]),
        ("published as", f.get("published_name")),
        ("paper", f"[{f['paper']}](https://arxiv.org/abs/{f['arxiv']}){venue}"),
        ("reference code", f"[{f['reference']}](https://github.com/{f['reference']})"),
        ("licence", f["license"]),
        ("parameters", counted),
        ("input", f["input"]),
        *((f"{r['dataset']}, {r['metric']}", f"{r['value']} (published, not measured here)") for r in f["results"]),
        ("weights", f"[{url.rsplit('/', 1)[-1]}]({url})" if url else "none known"),
        ("note on the weights", f.get("checkpoint_note")),
        *_dense(name),
        ("preprocessing", f.get("preprocessing")),
        ("training", f.get("training")),
        ("note", f.get("note")),
        ("source of these facts", f["source"]),
    ]
    body = "\n".join(f"| {key} | {value} |" for key, value in rows if value)
    task = {"classification": "image-classification", "video": "image-segmentation"}.get(
        f["task"], "image-segmentation"
    )
    head = f"---\ntags:\n- {task}\n- medical\n- timm\n- vision-ssm\nlibrary_name: timm\n"
    head += f"license: {f['license'].lower()}\n---\n"
    use = (
        "```python\nimport timm\nimport vision_ssm  # registers the models\n\n"
        f'model = timm.create_model("{name}", in_chans={f["input"].split("x")[-_axes(f)]}, num_classes=2).eval()\n```'
    )
    return f"{head}# {name}\n\n| | |\n|---|---|\n{body}\n\n{use}\n"


def _axes(f: dict) -> int:
    """Where the channels stand in a network's input, counted from its end."""
    return 3 if f["task"] == "video" or f["input"].count("x") == 2 else 4


def _generated(text: str, marks: tuple[str, str], content: str) -> str:
    """A file's text with new content between two marks."""
    before, _, rest = text.partition(marks[0])
    return f"{before}{marks[0]}\n{content}\n{marks[1]}{rest.partition(marks[1])[2]}"


def outputs() -> dict[Path, str]:
    """Every generated file and its content."""
    files = {ROOT / "model_cards" / f"{name}.md": card(name, f) for name, f in backbone_facts().items()}
    files |= {ROOT / "model_cards" / f"{name}.md": network_card(name, f) for name, f in network_facts().items()}
    readme = _generated((ROOT / "README.md").read_text(encoding="utf-8"), _BACKBONES, table())
    files[ROOT / "README.md"] = _generated(readme, _NETWORKS, network_table())
    return files


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    stale = [path for path, text in outputs().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(outputs()[path], encoding="utf-8")
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
