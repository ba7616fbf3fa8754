"""Random arguments of the selective scan, and the comparison of every backend with the oracle."""

import contextlib
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import strategies as st
from ops import oracle
from torch import Tensor

from vision_ssm.ops import available_backends, cpu, use_backend

# max |difference| / max |reference| that passes. Gradients of parameters are sums over the batch and all steps.
_STEPWISE, _SUMMED = ("u", "dt", "B", "C", "z"), ("A", "D", "dt_bias", "dt_weight")
FLOAT32 = dict(y=1e-6, last_state=1e-6) | dict.fromkeys(_STEPWISE, 3e-6) | dict.fromkeys(_SUMMED, 1e-5)
FLOAT64 = dict.fromkeys(FLOAT32, 1e-12)
BFLOAT16 = dict(y=1e-2, last_state=1e-2) | dict.fromkeys(_STEPWISE + _SUMMED, 3e-2)
FLOAT16 = dict(y=2e-3, last_state=2e-3) | dict.fromkeys(_STEPWISE + _SUMMED, 1e-2)


def arguments(
    batch: int = 2,
    tokens: int = 17,
    channels: int = 7,
    d_state: int = 4,
    paths: int = 2,
    groups: int = 1,
    rank: int = 0,
    shared: bool = True,
    skip: bool = True,
    gate: bool = True,
    bias: bool = True,
    tables: Tensor | None = None,
    out_tokens: int | None = None,
    softplus: bool = True,
    merge: bool = True,
    seed: int = 0,
) -> tuple[dict, dict]:
    """(tensors, options) of a scan: moderate values, decays between 0 and 1."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    out_tokens = tokens if out_tokens is None else out_tokens
    dt = normal(batch, paths, tokens, rank or channels)
    tensors = dict(
        u=normal(batch, 1 if shared else paths, tokens, channels),
        dt=dt - 1 if softplus else dt.abs() * 0.3,
        A=-torch.exp(normal(paths, channels, d_state)),
        B=normal(batch, paths, tokens, groups, d_state),
        C=normal(batch, paths, tokens, groups, d_state),
    )
    if rank:
        weight = normal(paths, channels, rank) / math.sqrt(rank)
        tensors["dt_weight"] = weight if softplus else weight.abs()
    if skip:
        tensors["D"] = normal(paths, channels)
    if gate:
        tensors["z"] = normal(batch, 1 if merge or shared else paths, out_tokens, channels)
    if bias:
        tensors["dt_bias"] = normal(paths, channels) if softplus else normal(paths, channels).abs() * 0.1
    return tensors, dict(tables=tables, out_tokens=out_tokens, softplus=softplus, merge=merge)


def operator(
    u,
    dt,
    A,
    B,
    C,
    D=None,
    z=None,
    dt_bias=None,
    dt_weight=None,
    tables=None,
    out_tokens=None,
    softplus=True,
    merge=True,
):
    """The operator itself, which also returns the last state: (y, last_state)."""
    tensors = u, dt, A, B, C, D, z, dt_bias, dt_weight
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    out_tokens = u.shape[2] if out_tokens is None else out_tokens
    return torch.ops.vision_ssm.selective_scan(*tensors, tables, out_tokens, softplus, merge, save)[:2]


def results(function, tensors: dict, options: dict, seed: int = 1) -> dict[str, Tensor]:
    """Outputs and all gradients of a scan, for fixed random gradients of both outputs (exact in bfloat16)."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    y, last_state = function(**leaves, **options)
    random = torch.Generator().manual_seed(seed)
    given = [torch.randn(x.shape, generator=random).bfloat16().to(x.device, x.dtype) for x in (y, last_state)]
    gradients = torch.autograd.grad([y, last_state], list(leaves.values()), given, materialize_grads=True)
    return dict(y=y, last_state=last_state) | dict(zip(leaves, gradients, strict=True))


def check(
    tensors: dict, options: dict, tolerance: dict[str, float] = FLOAT32, backends: list[str] | None = None
) -> None:
    """Hold outputs and gradients of every backend against the oracle."""
    expected = results(oracle.scan, tensors, options)
    wrong = []
    for backend in available_backends() if backends is None else backends:
        with use_backend(backend):
            ours = results(operator, tensors, options)
        for name, value in ours.items():
            assert name == "last_state" or value.dtype == tensors.get(name, tensors["u"]).dtype
            error = oracle.error(value, expected[name])
            if not error <= tolerance[name]:
                wrong.append(f"{backend}: {name} is off by {error:.1e}, allowed are {tolerance[name]:.0e}")
    assert not wrong, "; ".join(wrong)


def convert(tensors: dict, dtypes: dict[str, torch.dtype]) -> dict:
    """Tensors in the given dtypes, float32 where there is none."""
    return {name: x.to(dtypes.get(name, torch.float32)) for name, x in tensors.items()}


# (dtype of each argument, tolerance)
DTYPES = {
    "bfloat16 input": (dict.fromkeys("uz", torch.bfloat16), BFLOAT16),
    "bfloat16 parameters": (dict.fromkeys(("dt", "B", "C"), torch.bfloat16), BFLOAT16 | dict(y=1e-6, last_state=1e-6)),
    "bfloat16": (dict.fromkeys(("u", "dt", "B", "C", "z"), torch.bfloat16), BFLOAT16),
    "all bfloat16": (dict.fromkeys(FLOAT32, torch.bfloat16), BFLOAT16),
    "float16": (dict.fromkeys(("u", "dt", "B", "C", "z"), torch.float16), FLOAT16),
    "float16 parameters": (dict.fromkeys(("dt", "B", "C"), torch.float16), FLOAT16 | dict(y=1e-6, last_state=1e-6)),
}


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _strided(x: Tensor) -> Tensor:
    """Every second entry of a larger tensor, in each dimension."""
    return torch.full([2 * n for n in x.shape], torch.nan, dtype=x.dtype)[
        tuple(slice(1, None, 2) for _ in x.shape)
    ].copy_(x)


def _batch_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def _unaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


LAYOUTS = dict(transposed=_transposed, strided=_strided, batch_last=_batch_last, unaligned=_unaligned)


def with_dt(change: Callable[[Tensor], Tensor], **kwargs) -> tuple[dict, dict]:
    """Arguments whose dt is changed."""
    tensors, options = arguments(**dict(tokens=70, channels=20, d_state=5, bias=False) | kwargs)
    return tensors | dict(dt=change(tensors["dt"])), options


def _some(x: Tensor, value: float) -> Tensor:
    """Every third value replaced."""
    return torch.where(torch.arange(x.numel()).view(x.shape) % 3 == 0, value, x)


# What makes of moderate dt others.
STEP_SIZES = {
    "large": lambda dt: dt + 50,
    "huge, decay 0": lambda dt: dt + 1e4,
    "huge here and there": lambda dt: _some(dt, 1e30),
    "small": lambda dt: dt - 20,
    "-100 here and there": lambda dt: _some(dt, -100.0),
    "infinitely small here and there": lambda dt: _some(dt, -math.inf),
}


def growing(tokens: int, exponents: Tensor, first: float) -> tuple[dict, dict]:
    """One state of every channel that starts at `first` and grows by exp(exponent) with each step."""
    tensors, options = arguments(
        batch=1,
        tokens=tokens,
        channels=len(exponents),
        d_state=1,
        paths=1,
        skip=False,
        gate=False,
        bias=False,
        softplus=False,
    )
    u = torch.zeros_like(tensors["u"])
    u[:, :, 0] = first
    ones = dict(A=torch.ones_like(tensors["A"]), B=torch.ones_like(tensors["B"]), C=torch.ones_like(tensors["C"]))
    dt = exponents.expand_as(tensors["dt"]).clone()
    dt[:, :, 0] = 1
    return ones | dict(u=u, dt=dt), options


INSTRUCTION_SETS = {
    "baseline": ("",),
    "avx2": ("AVX2", "AVX512"),
    "avx512": ("AVX512",),
}  # who has them, in PyTorch's words


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the compiled kernels with this instruction set; skips the test where the machine lacks it."""
    library = cpu.library()
    if library is None:
        pytest.skip("the compiled kernels were not built")
    if not torch.backends.cpu.get_cpu_capability().startswith(INSTRUCTION_SETS[name]):
        pytest.skip(f"this machine has no {name}")
    before = library.vssm_isa()
    assert library.vssm_set_isa(name.encode()), f"the library refuses {name}"
    try:
        yield
    finally:
        assert library.vssm_set_isa(before)


def random_tables(kind: str, paths: int, tokens: int, seed: int = 0) -> tuple[Tensor | None, int]:
    """(tables, length of the output) of a kind:

    - none: in order;
    - permuted: each path visits every token once and writes where it read;
    - padded: as permuted, with pads in between;
    - one way: tokens read along one permutation are written in another order;
    - any: tokens are left out or met several times, on both sides, and the output has a length of its own.
    """
    random = torch.Generator().manual_seed(seed)
    if kind == "none":
        return None, tokens
    orders = torch.stack([torch.randperm(tokens, generator=random) for _ in range(2 * paths)]).view(2, paths, tokens)
    if kind == "one way":
        return orders.int(), tokens
    if kind == "any":
        steps, out_tokens = tokens + 3, max(1, tokens - 2)
        limit = torch.tensor([tokens, out_tokens])[:, None, None]
        draw = torch.rand(2, paths, steps, generator=random)
        return ((draw * (limit + 1)).floor() - 1).int().contiguous(), out_tokens
    order = orders[0]
    if kind == "padded":
        holes = torch.full((paths, 2), -1)
        order = torch.cat([order[:, : tokens // 2], holes, order[:, tokens // 2 :], holes[:, :1]], 1)
    return torch.stack([order, order]).int().contiguous(), tokens


TABLE_KINDS = ("none", "permuted", "padded", "one way", "any")


@st.composite
def cases(draw, tokens=(1, 2, 5, 31, 33, 63, 64, 65), channels=(1, 7, 16, 33, 96), d_state=(1, 3, 4, 16, 20, 64)):
    """Arguments for `arguments`, of every shape and with every option."""
    flag = st.booleans()
    width, length = draw(st.sampled_from(channels)), draw(st.sampled_from(tokens))
    # The gradient of a single number is one long sum: where it cancels, an error relative to it says nothing.
    paths = draw(st.integers(3 if width == 1 else 1, 4))
    seed = draw(st.integers(0, 1000))
    tables, out_tokens = random_tables(draw(st.sampled_from(TABLE_KINDS)), paths, length, seed)
    return dict(
        batch=draw(st.integers(1, 2)),
        tokens=length,
        channels=width,
        d_state=draw(st.sampled_from(d_state)),
        paths=paths,
        groups=draw(st.sampled_from([g for g in (1, 2, 3, 7, 16) if width % g == 0])),
        rank=draw(st.sampled_from([0, 1, 3])),
        shared=draw(flag),
        skip=draw(flag),
        gate=draw(flag),
        bias=draw(flag),
        tables=tables,
        out_tokens=out_tokens,
        softplus=draw(flag),
        merge=draw(flag),
        seed=seed,
    )
