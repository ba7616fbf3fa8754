"""Measure the launch plans of the Triton kernels on a GPU and say which the table should hold.

    python tools/gpu/tune_plans.py --output tools/results/plans-h200.json

Plans are never measured at run time: results must not change between runs. This prints, for each shape class, what
`vision_ssm/ops/gpu/plan.py` chooses now and what was fastest; edit the table by hand where the difference is real.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TILES, PACKS = (2, 4, 8, 16), (1, 2)
SEGMENTS = (1, 2, 4, 8, 16, 32, 64)


def candidates(case) -> list[str]:
    """Plans worth a try, as text for `use_plan`; those that only one image needs cut it into segments."""
    segments = SEGMENTS if case.batch * case.paths * case.channels < 64 * 1056 else (None,)
    texts = []
    for tile, pack, parts in itertools.product(TILES, PACKS, segments):
        if case.channels % (32 * pack) == 0 and tile * pack <= 16 and (case.d_state <= 2 or tile * pack <= 8):
            texts.append(f"tile={tile} pack={pack}" + (f" segments={parts}" if parts else ""))
    return texts


def problem(case, device: str = "cuda"):
    """Random arguments of a case on a device: (forward, backward) without arguments."""
    import torch

    from vision_ssm.ops import gpu

    scan = gpu.load("scan")
    g = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, case.dtype)
    new = lambda *shape, dtype=torch.float32: torch.randn(shape, generator=g, device=device).to(dtype)  # noqa: E731
    B, K, L, D, N, R = case.batch, case.paths, case.tokens, case.channels, case.d_state, case.rank
    u = new(B, 1 if case.shared else K, L, D, dtype=dtype)
    if R:
        dt, b, c = new(B, L, K, R + 2 * N).transpose(1, 2).split([R, N, N], -1)
    else:
        dt, b, c = new(B, K, L, D, dtype=dtype), new(B, K, L, N), new(B, K, L, N)
    z = new(B, 1, L, D, dtype=dtype) if case.gate else None
    tables = None
    if case.tables:
        orders = torch.stack([torch.randperm(L, generator=g, device=device) for _ in range(K)])
        tables = torch.stack([orders, orders]).int()
    args = u, dt, -torch.rand(K, D, N, generator=g, device=device), b.unsqueeze(3), c.unsqueeze(3), new(K, D)
    rest = new(K, D) - 4, 0.1 * new(K, D, R) if R else None, tables
    dy = new(B, 1, L, D, dtype=dtype)
    states = scan.forward(*args, z, *rest, L, True, True, True)[2]
    return (
        lambda: scan.forward(*args, z, *rest, L, True, True, False),
        lambda: scan.backward(dy, None, *args, *rest, states, True, True),
    )


def median_ms(run, seconds: float) -> tuple[float, float]:
    """(median, fastest) time of a call in milliseconds, with the L2 cache emptied before each."""
    from triton.testing import do_bench

    times = do_bench(run, warmup=20, rep=1000 * seconds, return_mode="all")
    return statistics.median(times), min(times)


def measure(case, seconds: float, device: str = "cuda", clock=median_ms, most: int | None = None) -> Iterator[dict]:
    """The times of a case's plans, forward and then backward.

    Args:
        seconds: of each measurement.
        clock: (call, seconds) to (median, fastest) in milliseconds.
        most: measure so many candidates only.
    """
    from triton.runtime.errors import OutOfResources

    from vision_ssm.ops.gpu.plan import use_plan

    for what, run in zip(("forward", "backward"), problem(case, device), strict=True):
        times = {}
        for text in ["", *candidates(case)[:most]]:
            try:
                with use_plan(text):
                    times[text or "table"] = clock(run, seconds)
            except OutOfResources:
                continue
        yield dict(case=case.name, what=what, times_ms=times, best=min(times, key=times.get))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write JSON after every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help="only cases whose name holds this")
    parser.add_argument("--seconds", type=float, default=0.1, help="time for each measurement")
    parser.add_argument("--limit", type=float, default=540, help="start no further case after so many seconds")
    parser.add_argument("--output", type=Path, default=ROOT / "tools" / "results" / "plans-gpu.json")
    args = parser.parse_args(arguments)
    import torch
    import triton
    from check_kernels import CASES

    from vision_ssm.files import write_json

    if not torch.cuda.is_available():
        print("plans are measured on an NVIDIA GPU, and there is none", file=sys.stderr)
        return 2
    record = dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__, triton=triton.__version__, cases=[])
    begin = time.monotonic()
    for case in (case for case in CASES if args.cases in case.name):
        if time.monotonic() - begin > args.limit:
            print(f"out of time before {case.name!r}", file=sys.stderr)
            break
        for found in measure(case, args.seconds):
            times, best = found["times_ms"], found["best"]
            print(f"{case.name:36} {found['what']:9} table {times['table'][0]:8.3f} ms, "
                  f"best {times[best][0]:8.3f} ms: {best}")  # fmt: skip
            record["cases"].append(found)
        write_json(args.output, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
