"""The README's block of figures of the medical networks, for `tools/readme_figures.py`."""

__all__ = ["network_figures"]

_COMMAND = (
    "`vision-ssm benchmark networks --threads 2 --mamba-ssm mamba_ssm-*.tar.gz -o tools/results/cpu-networks.json` "
    "(on a GPU: `--device cuda --amp bfloat16 -o tools/results/gpu-networks.json`), then "
    "`python tools/readme_figures.py`"
)
_RUNS = ("forward", "training", "training, recomputing")


def network_figures(files: list[dict]) -> str:
    """All figures, machine by machine; of files of one machine, in the order of their dates, later ones count."""
    machines: dict[str, list[dict]] = {}
    for file in files:
        where = file["machine"]
        machines.setdefault(where.get("gpu", where["cpu"]), []).append(file)
    parts = [_one_machine(name, of_it) for name, of_it in machines.items()]
    if not parts:
        return f"No figures of the networks have been measured yet. To measure them: {_COMMAND}."
    return "\n\n".join([*parts, f"Repeat it with {_COMMAND}."])


def _one_machine(name: str, files: list[dict]) -> str:
    where = files[-1]["machine"]
    results = {}
    for result in (r for file in files for r in file["networks"] if "error" not in r):
        results[result["case"], tuple(result.get("patch", ())), result.get("amp")] = result
    kinds: dict[str, list[dict]] = {}
    for (case, _, _), result in results.items():
        kinds.setdefault(case.partition("_")[0], []).append(result)
    threads = "" if "gpu" in where else f", {where['threads']} threads"
    parts = [f"Measured on {name}{threads}, torch {where['torch']}, {where['date']}, batch 1."]
    parts += [" ".join(map(_sequential, kinds.get("sequential", [])))]
    parts += [" ".join(map(_share, kinds.get("share", [])))]
    parts += [_memory_table(kinds["memory"])] if "memory" in kinds else []
    parts += [_windows(result) for result in kinds.get("windows", [])]
    return "\n\n".join(part for part in parts if part)


def _size(sides: list[int]) -> str:
    return "x".join(map(str, sides))


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.{1 if milliseconds >= 1e3 else 3}f} s"


def _gib(mib: float | None) -> str:
    return "–" if mib is None else f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _sequential(result: dict) -> str:
    ours = result["times_ms"]["ours"]["median"]
    whose = "mamba_ssm's sequential" if result["contender"] == "published reference" else "our `reference`"
    return (
        f"`{result['network']}` at {_size(result['patch'])}, forward, float32: {_seconds(ours)}; with {whose} scan in "
        f"place of ours and nothing else changed, {result['ratio']:.2g} times as long."
    )


def _share(result: dict) -> str:
    return (
        f"The Mamba layers take {100 * result['share']:.2g}% of a forward pass of `{result['network']}` at "
        f"{_size(result['patch'])}."
    )


def _memory_table(results: list[dict]) -> str:
    lines = [
        "| network | patch | forward | training step | the same with activation checkpointing |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        dtype = f", {result['amp']}" if result["amp"] else ""
        cells = [_cell(result["runs"][what]) for what in _RUNS]
        lines.append(f"| `{result['network']}` | {_size(result['patch'])}{dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict) -> str:
    if "times_ms" in found:
        return f"{_seconds(found['times_ms']['median'])}, {_gib(found['peak_mib'])}"
    if "stopped" in found:
        return found["stopped"]
    return "does not take this size" if "refused" in found else "failed"


def _windows(result: dict) -> str:
    lines = [
        f"Peak memory of sliding windows of {_size(result['window'])} voxels through `{result['network']}`:",
        "",
        "| volume | overlap | windows | peak | of it image and probabilities |",
        "|---|---|---|---|---|",
    ]
    for r in result["runs"]:
        if "windows" in r:
            cells = [_size(r["volume"]), f"{r['overlap']:.2f}", str(r["windows"]), _gib(r["peak_mib"])]
            lines.append(f"| {' | '.join([*cells, _gib(r['volume_mib'])])} |")
    return "\n".join(lines)
