"""Fuzz the raw operators over CPU kernels that are built with the address and undefined-behaviour sanitizers.

Right calls are held against the float64 definitions of tests/ops; each wrong call must end in a ValueError or
TypeError. The status is not 0 where a result is off, a wrong call passes, or a sanitizer reports anything. It needs
GCC and CMake.

    python tools/kernels/sanitize.py --quick     # a minute, with the build
    python tools/kernels/sanitize.py --seconds 3600 --seed 7
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = "libasan.so", "libstdc++.so.6"
BUILD = ROOT / "build" / "sanitized-kernels"


def build() -> Path:
    """The instrumented library; compiles what has changed since the last call."""
    for command in (
        ["-S", str(ROOT / "kernels"), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release", "-DVSSM_SANITIZE=ON"],
        ["--build", str(BUILD), "--parallel"],
    ):
        subprocess.run(["cmake", *command], check=True, stdout=subprocess.DEVNULL)
    return BUILD / "libvision_ssm_cpu.so"


def run_instrumented(library: Path, seconds: float, seed: int) -> int:
    """Fuzz in a Python with the sanitizers' runtime; returns its status."""
    # The C++ library beside it: the runtime looks for its symbols before PyTorch has brought it along.
    runtime = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip() for name in RUNTIME]
    env = os.environ | {
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99",  # Python and PyTorch leave memory to the end of the process
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "VISION_SSM_CPU_LIBRARY": str(library),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
        "OMP_NUM_THREADS": "2",
    }
    child = [sys.executable, __file__, "--instrumented", "--seconds", str(seconds), "--seed", str(seed)]
    return subprocess.run(child, env=env).returncode


# What follows runs in the instrumented process.

NAMES = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_weight")
# Dimensions that may have any size.
FREE = {("tables", -1), ("weight", 2), ("x", 0), ("x", 2), ("dy", 2)}


def scan_problem(rng: random.Random) -> tuple[dict, dict]:
    """Arguments of a right scan in random layouts and dtypes: (tensors, options)."""
    import torch
    from ops.scan_cases import LAYOUTS, TABLE_KINDS, arguments, random_tables

    channels, paths, tokens, seed = (
        rng.choice([4, 7, 18, 33, 48]),
        rng.choice([1, 3]),
        rng.choice([1, 2, 33, 65]),
        rng.random(),
    )
    tables, out_tokens = random_tables(rng.choice(TABLE_KINDS), paths, tokens, int(seed * 1e6))
    flags = {name: rng.random() < 0.5 for name in ("shared", "skip", "gate", "bias", "softplus", "merge")}
    tensors, options = arguments(
        batch=rng.choice([0, 2, 2, 3]), tokens=tokens, channels=channels, paths=paths, tables=tables,
        out_tokens=out_tokens, d_state=rng.choice([1, 2, 4, 5, 16, 21]), rank=rng.choice([0, 0, 1, 3]),
        groups=rng.choice([g for g in (1, 2, 3, 7) if channels % g == 0]), seed=int(seed * 1e6), **flags,
    )  # fmt: skip
    layout = rng.choice([lambda x: x, *LAYOUTS.values()])
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    return {name: layout(x).to(dtype) for name, x in tensors.items()}, options


def conv_problem(rng: random.Random) -> tuple[dict, dict]:
    """As `scan_problem`, of a convolution."""
    import torch
    from ops.conv_cases import arguments
    from ops.scan_cases import LAYOUTS, random_tables

    paths, tokens, seed = rng.choice([1, 3]), rng.choice([1, 2, 33, 65, 130]), int(rng.random() * 1e6)
    tables, _ = random_tables(rng.choice(["none", "permuted", "padded", "any"]), paths, tokens, seed)
    tensors, options = arguments(
        batch=rng.choice([0, 2, 3]), tokens=tokens, channels=rng.choice([1, 7, 16, 33]), paths=paths,
        width=rng.choice([1, 2, 4, 9]), shared=rng.random() < 0.5, bias=rng.random() < 0.5, seed=seed,
        tables=None if tables is None else tables[0].contiguous(), silu=rng.random() < 0.5,
        mirrored=[rng.random() < 0.5 for _ in range(paths)],
    )  # fmt: skip
    layout = rng.choice([lambda x: x, *LAYOUTS.values()])
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    return {name: layout(x).to(dtype) for name, x in tensors.items()}, options


def tolerance(tensors: dict) -> float:
    """Relative; sums of gradients that cancel are further off."""
    import torch

    return 1e-4 if all(x.dtype == torch.float32 for x in tensors.values()) else 0.1


def compare(results, function, definition, tensors: dict, options: dict) -> None:
    """Outputs and gradients of a right call."""
    import torch

    ours, expected = (results(f, tensors, options) for f in (function, definition))
    for name, value in ours.items():
        wide, want = value.detach().double(), expected[name].detach().double()
        assert wide.shape == want.shape, f"`{name}` is {tuple(wide.shape)}: expected {tuple(want.shape)}"
        limit = tolerance(tensors) * (1 + float(want.abs().max()) if want.numel() else 1)
        assert torch.all((wide - want).abs() <= limit), f"`{name}` is off by {(wide - want).abs().max():.1e}"


def broken(rng: random.Random, name: str, value):
    """`value` with something wrong about it, and what that is."""
    import torch

    if isinstance(value, list):
        return rng.choice([value + [1], value[:-1]]), "other length"
    if not isinstance(value, torch.Tensor):
        return rng.choice([0, -1, -(2**40), 2**31, 2**62]), "number"
    kind = rng.choice(["size", "size", "size", "dtype", "dimension", "device", "entry", "layout"])
    if kind == "entry" and name == "tables":
        value = value.clone()
        value.view(-1)[rng.randrange(value.numel())] = rng.choice([-(2**31), -2, 2**31 - 1, 10**6])
        return value, kind
    if kind == "layout" and name == "tables":
        return value.repeat_interleave(2, -1)[..., ::2] if value.shape[-1] > 1 else value.long(), kind
    if kind == "dtype":
        return value.to(rng.choice([torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])), kind
    if kind == "device":
        return value.to("meta"), kind
    if kind == "dimension" and name != "states":  # with other dimensions they are another backend's
        return rng.choice([value.unsqueeze(0), value.flatten()[:1].squeeze()]), kind
    if kind == "layout" and value.numel():
        return value.to_sparse(), kind
    free = {d % value.dim() for n, d in FREE if n == name}
    dimension = rng.choice([d for d in range(value.dim()) if d not in free])
    size = value.shape[dimension]
    right = {
        size,
        *([1] if dimension == 1 else []),
        *([0] if name in ("states", "ungated") else []),
    }  # shared; not kept
    shape = [*value.shape]
    shape[dimension] = rng.choice([n for n in (0, size - 1, size + 1, 2 * size + 2, 5000) if n >= 0 and n not in right])
    return torch.zeros(shape, dtype=value.dtype), f"{shape[dimension]} in dimension {dimension}"


def must_refuse(rng: random.Random, operator, args: dict, keep: tuple[str, ...] = ()) -> None:
    """One argument of a right call is broken."""
    name = rng.choice([n for n, x in args.items() if x is not None and not isinstance(x, bool | str) and n not in keep])
    value, what = broken(rng, name, args[name])
    try:
        operator(*(args | {name: value}).values())
    except (ValueError, TypeError) as error:
        assert "Traceback" not in str(error)
        return
    shapes = {n: tuple(x.shape) if hasattr(x, "shape") else x for n, x in args.items()}
    raise AssertionError(f"`{name}` is wrong ({what}) and accepted; right are {shapes}")


def fuzz_scan(rng: random.Random) -> None:
    """One right and several wrong calls of the scan and its gradient."""
    import torch
    from ops import oracle
    from ops.scan_cases import operator, results

    tensors, options = scan_problem(rng)
    if rng.random() < 0.3:
        compare(results, operator, oracle.scan, tensors, options)
    forward = torch.ops.vision_ssm.selective_scan
    inputs = {name: tensors.get(name) for name in NAMES}
    args = inputs | options | dict(save=True)
    y, last_state, states, ungated = forward(*args.values())
    keep = () if options["tables"] is None else ("out_tokens",)
    backward = dict(dy=y, d_last_state=last_state) | inputs
    backward |= dict(tables=options["tables"], states=states, ungated=ungated)
    backward |= dict(softplus=options["softplus"], merge=options["merge"])
    # A batch of nothing keeps nothing; and then nothing can be wrong with it.
    empty = ("states", "ungated") if len(y) == 0 else () if ungated.numel() else ("ungated",)
    for _ in range(4):
        must_refuse(rng, forward, args, keep)
        must_refuse(rng, torch.ops.vision_ssm.selective_scan_backward, backward, empty)


def fuzz_conv(rng: random.Random) -> None:
    """The same of the convolution."""
    import torch
    from ops import oracle
    from ops.conv_cases import results

    from vision_ssm.ops import causal_conv1d

    tensors, options = conv_problem(rng)
    if rng.random() < 0.3:
        compare(results, causal_conv1d, oracle.conv, tensors, options)
    args = dict(x=tensors["x"], weight=tensors["weight"], bias=tensors.get("bias"), tables=options["tables"])
    args |= dict(mirrored=[int(flag) for flag in options["mirrored"]], silu=options["silu"])
    y = torch.ops.vision_ssm.causal_conv1d(*args.values())
    for _ in range(4):
        must_refuse(rng, torch.ops.vision_ssm.causal_conv1d, args)
        must_refuse(rng, torch.ops.vision_ssm.causal_conv1d_backward, dict(dy=y) | args)


def fuzz(seconds: float, seed: int) -> int:
    """Rounds until the time is over; returns the status."""
    from ops.scan_cases import INSTRUCTION_SETS

    from vision_ssm.ops import cpu

    library = cpu.library()
    assert library is not None and library._name == os.environ["VISION_SSM_CPU_LIBRARY"], (
        "the instrumented kernels do not load"
    )
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        rng = random.Random(f"{seed} {rounds}")
        library.vssm_set_isa(rng.choice(list(INSTRUCTION_SETS)).encode())
        try:
            rng.choice([fuzz_scan, fuzz_scan, fuzz_conv])(rng)
        except Exception as error:
            print(f"seed {seed}, round {rounds}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        rounds += 1
    print(f"{rounds} rounds without a fault")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="15 seconds of fuzzing")
    parser.add_argument("--seconds", type=float, default=300, help="of fuzzing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--instrumented", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.instrumented:
        return fuzz(args.seconds, args.seed)
    return run_instrumented(build(), 15 if args.quick else args.seconds, args.seed)


if __name__ == "__main__":
    sys.exit(main())
