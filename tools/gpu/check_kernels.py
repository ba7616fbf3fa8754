"""Compile the Triton kernels for GPUs that need not be there, and hold registers, spills and instructions to a budget.

    python tools/gpu/check_kernels.py                      # the published models, for sm_80, sm_90 and sm_100
    python tools/gpu/check_kernels.py --quick              # a few of them
    python tools/gpu/check_kernels.py --output FILE.json   # record what was found

The host code runs on shapes alone and hands its launches over, so what is compiled is what a GPU would run.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Most bytes that a thread of a kernel may spill; 0 where none is named. 96 are 24 of 255 registers, and the backward
# pass keeps two numbers a state.
SPILLS = {"scan_backward": 96}
# Instructions of a warp in the innermost loop per step, channel of a lane and state: (kernel, d_state) -> budget.
INSTRUCTIONS = {("scan_forward", 16): 12.5, ("scan_forward", 1): 62.0, ("scan_backward", 16): 36.0}
CAPABILITIES = (80, 90, 100)


@dataclass(frozen=True)
class Case:
    """A scan as a model launches it; `rank` 0 passes dt at full width."""

    name: str
    batch: int
    paths: int
    tokens: int
    channels: int
    d_state: int
    rank: int
    shared: bool = False
    gate: bool = False
    tables: bool = False
    dtype: str = "bfloat16"
    quick: bool = False


CASES = (
    Case("vim_tiny", 128, 2, 197, 384, 16, 12, gate=True, tables=True, quick=True),
    Case("vim_tiny, one image", 1, 2, 197, 384, 16, 12, gate=True, tables=True),
    Case("vim_small", 128, 2, 197, 768, 16, 24, gate=True, tables=True),
    Case("vmamba_tiny stage 1", 128, 4, 3136, 96, 1, 6, shared=True, tables=True, quick=True),
    Case("vmamba_tiny stage 2", 128, 4, 784, 192, 1, 12, shared=True, tables=True),
    Case("vmamba_tiny stage 3", 128, 4, 196, 384, 1, 24, shared=True, tables=True),
    Case("vmamba_tiny stage 4", 128, 4, 49, 768, 1, 48, shared=True, tables=True),
    Case("vmamba_tiny stage 1, one image", 1, 4, 3136, 96, 1, 6, shared=True, tables=True),
    Case("vmamba_tiny stage 1, float32", 128, 4, 3136, 96, 1, 6, shared=True, tables=True, dtype="float32"),
    Case("local_vmamba_tiny stage 1", 128, 4, 3136, 192, 16, 6, shared=True, tables=True),
    Case("mamba_ssm's signature", 128, 1, 197, 384, 16, 0, gate=True, dtype="float16"),
    Case("a long sequence", 1, 1, 262144, 64, 16, 0, quick=True),
    Case("a volume", 1, 3, 128**3, 64, 16, 4, shared=True, tables=True),
    Case("d_state 8", 128, 2, 196, 384, 8, 12, tables=True),
    Case("d_state 4", 128, 2, 196, 384, 4, 12, tables=True),
    Case("d_state 64", 16, 1, 196, 384, 64, 12),
)


class Target:
    """A driver for a GPU that is only compiled for."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self):
        """What to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """One device a capability, since Triton keeps kernels by device."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Nothing is launched."""
        return 0


def launches(case: Case) -> list[tuple]:
    """(kernel, arguments, options) of a case, forward and backward, each kind of kernel once."""
    import torch

    from vision_ssm.ops import gpu
    from vision_ssm.ops.gpu.launch import intercepted

    dtype = getattr(torch, case.dtype)
    new = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    B, K, L, D, N, R = case.batch, case.paths, case.tokens, case.channels, case.d_state, case.rank
    u = new(B, 1 if case.shared else K, L, D, dtype=dtype)
    if R:
        dt, b, c = new(B, L, K, R + 2 * N).transpose(1, 2).split([R, N, N], -1)
    else:
        dt, b, c = new(B, K, L, D, dtype=dtype), new(B, K, L, N), new(B, K, L, N)
    z = new(B, 1, L, 2 * D, dtype=dtype)[..., D:] if case.gate else None
    args = u, dt, new(K, D, N), b.unsqueeze(3), c.unsqueeze(3), new(K, D)
    rest = new(K, D), new(K, D, R) if R else None, _table(K, L) if case.tables else None
    found = {}

    def collect(kernel, arguments, options):
        found.setdefault(kernel.__name__, (kernel, arguments, options))

    scan = gpu.load("scan")
    with intercepted(collect):
        states = scan.forward(*args, z, *rest, L, True, True, True)[2]
        scan.backward(new(B, 1, L, D, dtype=dtype), None, *args, *rest, states, True, True)
    return list(found.values())


def _table(paths: int, tokens: int):
    """A table on no device, known to be a permutation of the tokens for each path."""
    import torch

    from vision_ssm.ops.visits import Visits, know

    table = torch.empty(2, paths, tokens, dtype=torch.int32, device="meta")
    return know(table, [Visits(pads=False, once=True, distinct=tokens, highest=tokens - 1)] * 2)


def _tool(name: str) -> str:
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(bundled) if bundled.exists() else name


def _disassemble(cubin: bytes) -> tuple[dict[str, int], str]:
    """(registers and stack, listing) of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = subprocess.run([_tool("cuobjdump"), "-res-usage", file], capture_output=True, text=True, check=True)
        listing = subprocess.run([_tool("nvdisasm"), "-c", file], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage.stdout + usage.stderr)
    return dict(registers=int(found[1]), spills=int(found[2]), shared=int(found[3])), listing


def hottest_loop(listing: str) -> Counter:
    """Instructions, by name, of the largest loop that holds no other loop."""
    names, labels, loops = [], {}, []
    for line in map(str.strip, listing.splitlines()):
        if re.fullmatch(r"\.L_\w+:", line):
            labels[line[:-1]] = len(names)
        found = re.match(r"(?:/\*\w+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[\w.]*\s*(.*);", line)
        if found:
            target = re.search(r"`\((\.L_\w+)\)", found[2])
            if found[1] == "BRA" and target and labels.get(target[1], len(names)) < len(names):
                loops.append((labels[target[1]], len(names)))
            names.append(found[1])
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    start, end = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, len(names) - 1))
    return Counter(names[start : end + 1])


def compile_case(case: Case, capability: int) -> list[dict]:
    """What each kernel of a case takes of a GPU."""
    import triton

    triton.runtime.driver.set_active(Target(capability))
    results = []
    for kernel, arguments, options in launches(case):
        compiled = kernel.warmup(*arguments, grid=(1,), **options)
        usage, listing = _disassemble(compiled.asm["cubin"])
        usage["shared"] = compiled.metadata.shared
        loop = hottest_loop(listing)
        result = dict(case=case.name, capability=capability, kernel=kernel.__name__) | usage
        constants = getattr(arguments[0], "c", None)
        if constants is not None:
            of = {name: getattr(constants, name).value for name in ("STATES", "TILE", "PACK")}
            steps = of["TILE"] * of["PACK"] * of["STATES"]
            result |= dict(tile=of["TILE"], pack=of["PACK"], d_state=of["STATES"])
            result |= dict(
                instructions=round(sum(loop.values()) / steps, 2), barriers=loop["BAR"], shuffles=loop["SHFL"]
            )
        results.append(result)
    return results


def complaints(result: dict) -> list[str]:
    """What a kernel takes beyond its budget."""
    kernel, found = result["kernel"], []
    if result["spills"] > SPILLS.get(kernel, 0):
        found.append(f"spills {result['spills']} bytes, allowed are {SPILLS.get(kernel, 0)}")
    if result.get("barriers"):
        found.append(f"waits at {result['barriers']} barriers")
    if kernel != "scan_backward" and result.get("shuffles"):
        found.append(f"shuffles {result['shuffles']} times")
    budget = INSTRUCTIONS.get((kernel, result.get("d_state")))
    if budget and result["instructions"] > budget:
        found.append(f"takes {result['instructions']} instructions a step, allowed are {budget}")
    return [f"{result['case']}, sm_{result['capability']}, {kernel}: {text}" for text in found]


def main(arguments: list[str] | None = None) -> int:
    """Compile, print a table, and return 1 where a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--capability", type=int, nargs="+", default=CAPABILITIES, help="compute capability, 90 for 9.0"
    )
    parser.add_argument("--quick", action="store_true", help="a few cases")
    parser.add_argument("--output", type=Path, help="write the findings to this JSON file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    cases = [case for case in CASES if case.quick or not args.quick]
    work = [(case, capability) for case in cases for capability in args.capability]
    results = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for found in pool.map(compile_case, *zip(*work, strict=True)):
            for r in found:
                detail = f"tile {r['tile']} pack {r['pack']} {r['instructions']:6.2f} a step" if "tile" in r else ""
                print(f"sm_{r['capability']:<4}{r['kernel']:18} {r['registers']:3} registers {r['spills']:3} spilled "
                      f"{r['shared']:5} shared  {detail:32} {r['case']}", flush=True)  # fmt: skip
            results += found
    if args.output:
        from vision_ssm.files import write_json

        write_json(args.output, dict(triton=triton.__version__, cases=[asdict(c) for c in cases], kernels=results))
    wrong = [text for result in results for text in complaints(result)]
    print("\n".join(wrong) if wrong else f"Triton {triton.__version__}: {len(results)} kernels within their budgets")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
