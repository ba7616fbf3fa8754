"""The README's block of GPU figures, for `tools/readme_figures.py`."""

__all__ = ["gpu_speed"]

_COMMANDS = (
    "`vision-ssm benchmark ops --device cuda -o tools/results/gpu-ops.json` and "
    "`vision-ssm benchmark models --device cuda -o tools/results/gpu-models.json`, "
    "then `python tools/readme_figures.py`. mamba_ssm's kernel takes part where it is installed, which "
    "`tools/gpu/build_mamba_ssm.py` builds"
)
_NONE = (
    "No GPU figures have been measured yet. To measure them on a machine with an NVIDIA GPU: "
    f"`python tools/gpu/checkup.py --out DIR` in one call ([docs/gpu.md](docs/gpu.md)), or in full\n{_COMMANDS}."
)


def gpu_speed(ops: list[dict], models: list[dict]) -> str:
    """Operators and models on a GPU, from files of results in the order of their dates: later ones replace earlier.

    Raises:
        ValueError: the files are of different GPUs, or of a rehearsal on a CPU.
    """
    files = [*ops, *models]
    if not files:
        return _NONE
    if any(file["machine"].get("rehearsal") for file in files):
        raise ValueError("a GPU result is that of a rehearsal on a CPU: it is no figure")
    gpus = {file["machine"]["gpu"] for file in files}
    if len(gpus) > 1:
        raise ValueError(f"the GPU results are of several GPUs: {', '.join(sorted(gpus))}")
    scans = {(r["case"], r["what"]): r for file in ops for r in file["ops"] if "error" not in r}
    nets = {r["case"]: r for file in models for r in file["models"] if "error" not in r}
    parts = [
        _introduction(files),
        *([_ops_table(scans)] if scans else []),
        *_models(nets),
        f"Repeat it with {_COMMANDS}.",
    ]
    return "\n\n".join(parts)


def _introduction(files: list[dict]) -> str:
    where = max((file["machine"] for file in files), key=lambda machine: machine["date"])
    rates = [file["copy_gb_s"] for file in files]
    rate = " to ".join(dict.fromkeys(f"{rate:.0f}" for rate in (min(rates), max(rates))))
    return (
        f"Measured on one {where['gpu']} (driver {where['driver']}, CUDA {where['cuda']}, torch {where['torch']}, "
        f"triton {where['triton']}, timm {where['timm']}, {where['date']}), bfloat16 unless said, contestants in "
        "turns, medians of times by events, with inputs that the cache does not hold. Times in parentheses are those "
        "of a CUDA graph, without the host. The share of the bandwidth is that of the bytes that a scan cannot avoid "
        f"to move, against a large copy in the same run ({rate} GB/s, read and written). Ratios are the contestant's "
        "time over ours."
    )


def _ms(time: float) -> str:
    """Milliseconds with about three digits."""
    return f"{time:.{0 if time >= 100 else 1 if time >= 10 else 2 if time >= 1 else 3}f}"


def _mib(size: float) -> str:
    return f"{size / 1024:.1f} GiB" if size >= 1024 else f"{size:.0f} MiB"


def _against(result: dict, peer: str) -> str:
    """A peer's time over ours, and in parentheses that of the graphs."""
    times, ours = result["times_ms"], result["ours"]
    if peer not in times:
        return "differs" if peer in result["failed"] else "–"
    text = f"{times[peer]['median'] / times[ours]['median']:.1f}×"
    graphs = [f"{name}, graph" for name in (peer, ours)]
    if all(name in times for name in graphs):
        theirs, mine = (times[name]["median"] for name in graphs)
        text += f" ({theirs / mine:.1f}×)"
    return text


def _ops_table(results: dict[tuple, dict]) -> str:
    lines = [
        "| selective scan | ours | share of the bandwidth | memory "
        "| mamba_ssm (CUDA) | `chunked` | compiled `chunked` |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results.values():
        ours, times = r["ours"], r["times_ms"]
        best = f"{ours}, graph" if f"{ours}, graph" in times else ours
        time = f"{_ms(times[ours]['median'])} ms"
        if best != ours:
            time += f" ({_ms(times[best]['median'])})"
        cells = [f"{r['label']}, {r['what']}", time, f"{r['roofline'][best]:.0%}", _mib(r["peak_mib"][ours])]
        cells += [_against(r, peer) for peer in ("mamba_ssm", "chunked", "compiled chunked")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _models(results: dict[str, dict]) -> list[str]:
    parts = []
    zoo = {name: results[name] for name in ("inference_b128", "inference_b1", "training_b128", "training_b1")
           if name in results}  # fmt: skip
    if zoo:
        parts.append(_zoo_table(zoo))
    for name in ("large_inference", "large_training", "copies_vmamba", "copies_vim"):
        if name in results:
            parts.append(_sentence(results[name]))
    if results.get("scan_share", {}).get("share"):
        r = results["scan_share"]
        parts.append(
            f"In a training step of `{r['model']}` (batch {r['batch']}) the scan kernels take {r['share']:.0%} of the "
            f"device's time, the scan operators with what surrounds the kernels {r['share_of_operators']:.0%}."
        )
    return parts


def _zoo_table(results: dict[str, dict]) -> str:
    models = list(dict.fromkeys(n for r in results.values() for n in r["times_ms"] if not n.endswith(", graph")))
    lines = [
        f"| model (224x224) | {' | '.join(r['label'] for r in results.values())} |",
        "|---|" + "---|" * len(results),
    ]
    for model in models:
        cells = [_model_cell(r, model) for r in results.values()]
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _model_cell(result: dict, model: str) -> str:
    """Images a second of batches and time of single images, and the memory."""
    times = result["times_ms"]
    if model not in times:
        return "–"
    graph = times.get(f"{model}, graph")
    time = f"{_ms(times[model]['median'])} ms" + (f" ({_ms(graph['median'])})" if graph else "")
    rate = f"{result['images_per_second'][model]:.0f} images/s" if result["batch"] > 1 else time
    return f"{rate}, {_mib(result['peak_mib'][model])}"


def _sentence(result: dict) -> str:
    """What was compared, in a row."""
    found = []
    for name, time in result["times_ms"].items():
        model, separator, rest = name.partition(", ") if ", " in name else name.partition(" over ")
        found.append(f"`{model}`{separator}{rest} {_ms(time['median'])} ms and {_mib(result['peak_mib'][name])}")
    absent = [f"{name}: {reason}" for name, reason in result["absent"].items()]
    label = result["label"][0].upper() + result["label"][1:]
    return f"{label}: {'; '.join(found)}{' (absent: ' + '; '.join(absent) + ')' if absent else ''}."
