"""Where the tensors of a scan lie: streams, devices, and offsets beyond 2^31 elements; and what of them is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu.on_device import FLOAT32_GPU, compare, moved
from ops import oracle
from ops.scan_cases import BFLOAT16, arguments, operator, random_tables, results

from vision_ssm.ops import scan_tokens

ROOT = Path(__file__).parents[2]


def _case(**kwargs) -> tuple[dict, dict]:
    tables, _ = random_tables("padded", 2, 70)
    return arguments(**dict(batch=1, tokens=70, channels=40, d_state=2, rank=2, tables=tables) | kwargs)


def test_another_stream(cuda):
    """Kernels wait for what the current stream has still to do, and for no other."""
    tensors, options = _case()
    expected = results(oracle.scan, tensors, options)
    ready, options = moved(tensors, cuda), moved(options, cuda)
    results(operator, ready, options)  # compiled, and the tables looked up
    late = {name: torch.full_like(x, torch.nan) for name, x in ready.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        for name, x in ready.items():
            late[name].copy_(x)
        ours = results(operator, late, options)
    stream.synchronize()
    compare(ours, expected, FLOAT32_GPU)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_device(cuda):
    """It need not be the current one."""
    tensors, options = _case()
    other = torch.device("cuda", 1)
    with torch.cuda.device(0):
        ours = results(operator, moved(tensors, other), moved(options, other))
        assert all(x.device == other for x in ours.values())
    compare(ours, results(oracle.scan, tensors, options), FLOAT32_GPU)


def test_what_inference_keeps(cuda):
    """Nothing but the output: no states, no copy of an input."""
    tensors, options = arguments(batch=32, tokens=2000, channels=256, d_state=16, rank=8, paths=1, gate=False)
    x = torch.cat([tensors["dt"], tensors["B"].squeeze(3), tensors["C"].squeeze(3)], -1)
    dt, B, C = x.to(cuda).split([8, 16, 16], -1)
    tensors = moved(tensors, cuda) | dict(dt=dt, B=B.unsqueeze(3), C=C.unsqueeze(3))
    with torch.no_grad():
        y = scan_tokens(**tensors, **options)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        again = scan_tokens(**tensors, **options)
    peak = torch.cuda.max_memory_allocated() - before
    assert torch.equal(y, again)
    assert peak < 1.5 * y.numel() * y.element_size()


# Beyond 2^31


def _free() -> int:
    """Bytes of memory."""
    if not torch.cuda.is_available():
        return 2**40
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def _volume(tokens: int, paths: int, channels: int, device: torch.device) -> dict:
    """Arguments in bfloat16 of states that decay by exp(-0.5) a step at least: to nothing in 100 steps."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, device=device, dtype=dtype).normal_(generator=g)

    return dict(
        u=normal(1, paths, tokens, channels),
        dt=normal(1, paths, tokens, channels).mul_(0.1),
        A=-(1 + normal(paths, channels, 1, dtype=torch.float32).abs()),
        B=normal(1, paths, tokens, 1, 1, dtype=torch.float32),
        C=normal(1, paths, tokens, 1, 1, dtype=torch.float32),
    )


def _part(tensors: dict, begin: int, end: int) -> dict:
    """The same sequences from one token to another, as tensors of their own."""
    return {name: x if name == "A" else x[:, :, begin:end].contiguous() for name, x in tensors.items()}


@pytest.mark.parametrize(
    ("paths", "tokens"),
    [
        (1, 2**27 + 2**22),  # tokens beyond 2^31
        (4, 2**26 - 2**10),  # paths beyond 2^31, with strides that fit into 31 bits
    ],
)
def test_volumes(paths, tokens, sized, device):
    """A scan of a part of the sequence gives the same as that part of the scan, away from where it was cut."""
    channels, margin = 16, 100
    tokens, window = sized((tokens, 4096), (300, 20))
    paths = sized(paths, 1 if paths == 1 else 2)
    if _free() < 20 * paths * tokens * channels:  # in bytes: ten times u
        pytest.skip("not enough free memory")
    tensors = _volume(tokens, paths, channels, device)
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    y = scan_tokens(**leaves, merge=False)
    dy = torch.empty_like(y).normal_(generator=torch.Generator(device).manual_seed(1))
    gradients = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))
    half = 2**31 // channels if tokens * channels > 2**31 else tokens // 2
    for begin in (0, half - window // 2, tokens - window):
        low, high = max(0, begin - margin), min(tokens, begin + window + margin)
        part = {name: x.detach().requires_grad_() for name, x in _part(tensors, low, high).items()}
        part_y = scan_tokens(**part, merge=False)
        part_dy = dy[:, :, low:high].contiguous()
        expected = dict(zip(part, torch.autograd.grad(part_y, list(part.values()), part_dy), strict=True))
        inside = slice(begin - low, begin - low + window)
        ours = dict(y=y) | {name: gradients[name] for name in ("u", "dt", "B", "C")}
        for name, x in ours.items():
            whole = x[:, :, begin : begin + window]
            own = (part_y if name == "y" else expected[name])[:, :, inside]
            for k in range(paths):
                error = oracle.error(whole[:, k].cpu(), own[:, k].cpu())
                limit = BFLOAT16["y"] if x.dtype == torch.bfloat16 else 1e-4
                assert error <= limit, f"{name} of path {k} from {begin} is off by {error:.1e}"
    assert gradients["A"].isfinite().all()


# Bounds

SCRIPT = """
import torch
from ops.scan_cases import arguments, operator, random_tables, results
from gpu.on_device import moved
from vision_ssm.ops import use_backend
from vision_ssm.ops.gpu.plan import use_plan

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
for kind, plan, case in (
    ("any", "", dict(tokens=70, channels=33, d_state=3, rank=1, paths=2)),
    ("padded", "segments=2", dict(tokens=70, channels=5, d_state=1, rank=0, paths=2, merge=False)),
    ("none", "pack=2", dict(tokens=9, channels=70, d_state=2, rank=2, paths=1)),
):
    tables, out_tokens = random_tables(kind, case["paths"], case["tokens"])
    tensors, options = arguments(batch=1, tables=tables, out_tokens=out_tokens, **case)
    with use_backend("triton"), use_plan(plan):
        found = results(operator, moved(tensors, device), moved(options, device))
    assert all(x.isfinite().all() for x in found.values())
print("finished")
"""


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # each tensor has bounds of its own
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout)


def test_no_access_out_of_bounds(device):
    """Under compute-sanitizer, where there is one; else the script at least runs."""
    sanitizer = shutil.which("compute-sanitizer")
    command = [sys.executable, "-c", SCRIPT]
    if sanitizer and device.type == "cuda":
        # PyTorch itself asks for what a driver may not have.
        options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9", "--print-limit", "5"]
        command = [sanitizer, *options, *command]
    run = _run(command, 300)
    assert run.returncode == 0 and "finished" in run.stdout, (run.stdout + run.stderr)[-3000:]
