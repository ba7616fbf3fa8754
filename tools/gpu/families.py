"""Every family of Triton kernels on small shapes: outputs and gradients against the definition in float64.

    python tools/gpu/families.py              # all, on the current GPU
    python tools/gpu/families.py NAME ...     # some; `TRITON_INTERPRET=1` interprets them on the CPU, with fewer tokens

One line of JSON for each family, as soon as it is done: a family that kills its process takes no other's result along.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

_VIM = dict(batch=2, tokens=130, channels=64, d_state=16, paths=2, rank=4)
_VMAMBA = dict(batch=2, tokens=130, channels=96, d_state=1, paths=4, rank=6)
# What a scan takes: arguments of `ops.scan_cases.arguments`, and beside them a kind of tables, a plan, a dtype.
SCANS = {
    "scan, 1 state": _VMAMBA,
    "scan, 1 state, along permutations": _VMAMBA | dict(kind="permuted"),
    "scan, 1 state, along padded paths": _VMAMBA | dict(kind="padded"),
    "scan, 1 state, along paths that repeat tokens": _VMAMBA | dict(kind="any"),
    "scan, 2 states, each path's own output": _VIM | dict(d_state=2, merge=False, gate=False),
    "scan, 4 states in three groups": _VIM | dict(d_state=4, channels=48, groups=3, rank=0),
    "scan, 8 states, without softplus": _VIM | dict(d_state=8, softplus=False),
    "scan, 16 states": _VIM,
    "scan, 16 states, one gated path": _VIM | dict(paths=1, rank=0),
    "scan, 16 states, two channels a lane": _VIM | dict(plan="pack=2"),
    "scan, 16 states, in segments": _VIM | dict(batch=1, tokens=400, paths=1, plan="segments=4"),
    "scan, 1 state, in segments, along permutations": _VMAMBA | dict(batch=1, kind="permuted", plan="segments=2"),
    "scan, 48 states in blocks": _VIM | dict(d_state=48, channels=32, tokens=70),
    "scan, 16 states, bfloat16": _VIM | dict(dtype="bfloat16"),
    "scan, 16 states, float16": _VIM | dict(dtype="float16"),
    "scan, 1 state, bfloat16, along permutations": _VMAMBA | dict(kind="permuted", dtype="bfloat16"),
    "scan, 1 state, float16, along paths that repeat tokens": _VMAMBA | dict(kind="any", dtype="float16"),
}
_CONV = dict(batch=2, tokens=130, channels=96)
CONVOLUTIONS = {
    "convolution, both directions": _CONV | dict(mirrored=[False, True]),
    "convolution, three taps, without bias": _CONV | dict(paths=1, width=3, bias=False, silu=False),
    "convolution along padded paths": _CONV | dict(kind="padded"),
    "convolution, bfloat16": _CONV | dict(mirrored=[False, True], dtype="bfloat16"),
    "convolution, float16": _CONV | dict(paths=1, dtype="float16"),
}
NAMES = (*SCANS, *CONVOLUTIONS)
_SMALL = dict(tokens=5, batch=1, channels=4, rank=2, paths=2, d_state=17)  # what the interpreter does in a second


def _sized(case: dict, small: bool) -> dict:
    """A case for a GPU, or for the interpreter; a plan in segments keeps a token for two of them."""
    if not small:
        return case
    cut = {name: min(case[name], most) for name, most in _SMALL.items() if name in case}
    if cut.get("d_state") == 16:
        cut["d_state"] = 4
    if "segments" in case.get("plan", ""):
        cut["tokens"] = 66
    if case.get("groups", 1) > 1:
        cut["channels"] = 2 * case["groups"]
    return case | cut


def _scan(case: dict, device) -> dict[str, tuple[float, float]]:
    from gpu.on_device import FLOAT32_GPU, moved
    from ops import oracle
    from ops.scan_cases import BFLOAT16, FLOAT16, arguments, convert, operator, random_tables, results

    dtype, kind, plan = (case.pop(name, None) for name in ("dtype", "kind", "plan"))
    tables, out_tokens = random_tables(kind or "none", case["paths"], case["tokens"])
    tensors, options = arguments(tables=tables, out_tokens=out_tokens, **case)
    tensors, limits = _rounded(tensors, ("u", "dt", "B", "C", "z"), dtype, convert, FLOAT32_GPU, BFLOAT16, FLOAT16)
    with _planned(plan):
        ours = results(operator, moved(tensors, device), moved(options, device))
    return _errors(ours, results(oracle.scan, tensors, options), limits)


def _convolution(case: dict, device) -> dict[str, tuple[float, float]]:
    from gpu.on_device import moved
    from ops import oracle
    from ops.conv_cases import BFLOAT16, FLOAT16, FLOAT32, arguments, results
    from ops.scan_cases import convert, random_tables

    from vision_ssm.ops import causal_conv1d

    dtype, kind = case.pop("dtype", None), case.pop("kind", None)
    if kind:
        case["tables"] = random_tables(kind, 2, case["tokens"])[0][0].contiguous()
    tensors, options = arguments(**case)
    float32 = {name: 10 * limit for name, limit in FLOAT32.items()}  # as for scans: a GPU sums in another order
    tensors, limits = _rounded(tensors, ("x", "weight", "bias"), dtype, convert, float32, BFLOAT16, FLOAT16)
    ours = results(causal_conv1d, moved(tensors, device), moved(options, device))
    return _errors(ours, results(oracle.conv, tensors, options), limits)


def _rounded(tensors, names, dtype, convert, float32, bfloat16, float16) -> tuple[dict, dict[str, float]]:
    """Arguments in a dtype, and the tolerances that the tests have for it."""
    import torch

    if dtype is None:
        return tensors, float32
    limits = dict(bfloat16=bfloat16, float16=float16)[dtype]
    return convert(tensors, dict.fromkeys(names, getattr(torch, dtype))), limits


def _planned(plan: str | None) -> contextlib.AbstractContextManager:
    from vision_ssm.ops.gpu.plan import use_plan

    return use_plan(plan) if plan else contextlib.nullcontext()


def _errors(ours: dict, expected: dict, limits: dict[str, float]) -> dict[str, tuple[float, float]]:
    from ops import oracle

    return {name: (oracle.error(value.cpu(), expected[name].cpu()), limits[name]) for name, value in ours.items()}


def run(name: str, device, small: bool) -> dict:
    """What a family's kernels compute: largest errors relative to the largest value, and what is beyond tolerance."""
    start = time.perf_counter()
    case = SCANS.get(name) or CONVOLUTIONS[name]
    try:
        found = (_scan if name in SCANS else _convolution)(dict(_sized(case, small)), device)
        wrong = [f"{key} is off by {error:.1e}, allowed {limit:.0e}" for key, (error, limit) in found.items()
                 if not error <= limit]  # fmt: skip
        result = dict(errors={key: error for key, (error, _) in found.items()}, wrong=wrong)
    except Exception as error:
        result = dict(errors={}, wrong=[" ".join(f"{type(error).__name__}: {error}".split())[:600]])
    return dict(family=name, seconds=round(time.perf_counter() - start, 1)) | result


def main(arguments: list[str] | None = None) -> int:
    """Run families; returns 1 if any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="families (default: all)")
    names = parser.parse_args(arguments).names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"unknown families {', '.join(unknown)}; there are: {'; '.join(NAMES)}")
    import torch
    from ops.interpreter import interpreted

    from vision_ssm.ops import gpu, use_backend

    small = gpu.interpreting()
    if not small and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU; TRITON_INTERPRET=1 interprets the kernels on the CPU")
    wrong = 0
    with interpreted() if small else contextlib.nullcontext(), use_backend("triton"):
        for name in names:
            result = run(name, torch.device("cpu" if small else "cuda"), small)
            wrong += bool(result["wrong"])
            print(json.dumps(result), flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
