"""The causal convolution on a GPU: shapes, options, dtypes and layouts."""

import pytest
import torch
from gpu.on_device import compare, moved
from ops import oracle
from ops.conv_cases import BFLOAT16, FLOAT16, FLOAT32, arguments, results
from ops.scan_cases import LAYOUTS, random_tables

from vision_ssm.ops import causal_conv1d

FLOAT32_GPU = {name: 10 * limit for name, limit in FLOAT32.items()}
CASES = [
    dict(tokens=1, channels=7, paths=1),
    dict(tokens=197, channels=192, paths=2, mirrored=[False, True]),
    dict(tokens=257, channels=130, paths=3, mirrored=[True, False, True], shared=False, width=3),
    dict(tokens=1003, channels=18, paths=1, bias=False, silu=False),
    dict(tokens=64, channels=128, paths=4, width=1, batch=3),
    dict(tokens=40, channels=16, paths=1, width=16),
]


def _check(device: torch.device, tensors: dict, options: dict, tolerance: dict = FLOAT32_GPU) -> None:
    ours = results(causal_conv1d, moved(tensors, device), moved(options, device))
    compare(ours, results(oracle.conv, tensors, options), tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_definition(case, sized, device):
    case = case | dict(tokens=sized(case["tokens"], min(case["tokens"], 20)))
    _check(device, *arguments(**case))


@pytest.mark.parametrize("kind", ["permuted", "padded", "any"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_kind_of_table(kind, shared, device):
    tables, _ = random_tables(kind, 3, 20)
    tables = tables[0].contiguous()
    _check(device, *arguments(tokens=20, paths=3, tables=tables, mirrored=[True, False, True], shared=shared))


@pytest.mark.parametrize(
    ("x", "weight", "tolerance"),
    [
        (torch.bfloat16, torch.bfloat16, BFLOAT16),
        (torch.bfloat16, torch.float32, BFLOAT16),
        (torch.float16, torch.float32, FLOAT16),
    ],
)
def test_reduced_precision(x, weight, tolerance, device):
    tensors, options = arguments(tokens=20, channels=40, mirrored=[True, False])
    tensors = {name: value.to(x if name == "x" else weight) for name, value in tensors.items()}
    _check(device, tensors, options, tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, device):
    tensors, options = arguments(tokens=5, channels=34, shared=False, mirrored=[False, True])
    _check(device, {name: LAYOUTS[layout](x) for name, x in tensors.items()}, options)


def test_same_bits_in_twenty_runs(sized, device):
    tensors, options = arguments(tokens=sized(2000, 20), channels=sized(384, 4), batch=sized(8, 1))
    tensors = moved(tensors, device)
    first = results(causal_conv1d, tensors, options)
    for _ in range(sized(20, 2)):
        again = results(causal_conv1d, tensors, options)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_offsets_beyond_32_bits(sized, device):
    """The paths of one tensor, the last of which begin beyond 2^31 elements."""
    paths, tokens, channels = 4, sized(2**22 + 2**21, 40), 128
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info()[0] < 8 * paths * tokens * channels:
            pytest.skip("not enough free memory")
    x = torch.empty(1, paths, tokens, channels, dtype=torch.bfloat16, device=device)
    x.normal_(generator=torch.Generator(device).manual_seed(0))
    weight = torch.randn(paths, channels, 4).to(device)
    y = causal_conv1d(x, weight)
    for begin in (0, tokens - 20):
        low = max(0, begin - 3)
        part = causal_conv1d(x[:, :, low : begin + 20].contiguous(), weight)
        assert torch.equal(y[:, :, begin : begin + 20], part[:, :, begin - low :])
