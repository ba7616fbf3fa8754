"""`selective_scan`, the drop-in for mamba_ssm's function: against the definition, and against mamba_ssm itself."""

import ast
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ops import oracle
from ops.scan_cases import FLOAT32

from vision_ssm.ops import available_backends, selective_scan, use_backend

BACKENDS = available_backends()
FORMS = {"constant": "dn", "one group": "bnl", "groups": "bgnl"}
SIZES = dict(b=2, d=12, n=5, l=37, g=3)


def _arguments(B: str, C: str, **options) -> tuple[dict, dict]:
    """Tensors of mamba_ssm's shapes; `options` leaves out z, D, delta_bias or the softplus."""
    random = torch.Generator().manual_seed(0)

    def normal(dims: str) -> torch.Tensor:
        return torch.randn([SIZES[dim] for dim in dims], generator=random)

    softplus = options.get("delta_softplus", True)
    tensors = dict(
        u=normal("bdl"),
        delta=normal("bdl") - 1 if softplus else normal("bdl").abs() * 0.3,
        A=-torch.exp(normal("dn")),
        B=normal(FORMS[B]),
        C=normal(FORMS[C]),
        D=normal("d"),
        z=normal("bdl"),
        delta_bias=normal("d") if softplus else normal("d").abs() * 0.1,
    )
    return {name: x for name, x in tensors.items() if options.get(name, True)}, dict(delta_softplus=softplus)


def _definition(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """mamba_ssm's arguments brought to those of the oracle, one dimension after another."""
    batch, _, length = u.shape

    def grouped(x):
        if x.dim() == 2:
            return x[None, None, None].expand(batch, 1, length, -1, -1)
        x = x[:, None] if x.dim() == 3 else x
        return torch.einsum("bgnl->blgn", x)[:, None]

    one = lambda x: None if x is None else x[None]  # noqa: E731
    tokens = lambda x: None if x is None else torch.einsum("bdl->bld", x)[:, None]  # noqa: E731
    y, last_state = oracle.scan(
        tokens(u), tokens(delta), one(A), grouped(B), grouped(C), one(D), tokens(z), one(delta_bias),
        softplus=delta_softplus, merge=False,
    )  # fmt: skip
    return torch.einsum("bld->bdl", y[:, 0]), last_state[:, 0]


def _compare(tensors: dict, options: dict, definition, tolerance: float = 1.0) -> None:
    """Outputs and gradients; `tolerance` in units of the usual ones."""

    def run(function, **more):
        leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
        y, last_state = function(**leaves, **options, **more)
        random = torch.Generator().manual_seed(1)
        given = [torch.randn(x.shape, generator=random).to(x.dtype) for x in (y, last_state)]
        gradients = torch.autograd.grad([y, last_state], list(leaves.values()), given)
        return dict(y=y, last_state=last_state) | dict(zip(leaves, gradients, strict=True))

    expected = run(definition)
    names = dict(delta="dt", delta_bias="dt_bias")
    for backend in BACKENDS:
        with use_backend(backend):
            ours = run(selective_scan, return_last_state=True)
        for name, value in ours.items():
            error = oracle.error(value, expected[name])
            limit = tolerance * FLOAT32[names.get(name, name)]
            assert error <= limit, f"{backend}: {name} is off by {error:.1e}, allowed are {limit:.0e}"


@pytest.mark.parametrize("B", FORMS)
@pytest.mark.parametrize("C", FORMS)
def test_forms_of_B_and_C(B, C):
    _compare(*_arguments(B, C), _definition)


OPTIONS = [dict(z=False), dict(D=False), dict(delta_bias=False), dict(delta_softplus=False)]
OPTIONS += [dict(z=False, D=False, delta_bias=False, delta_softplus=False)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options):
    _compare(*_arguments("one group", "groups", **options), _definition)


def test_strides():
    """Channels-last memory, as a convolution of channels-last tokens gives it."""
    tensors, options = _arguments("one group", "one group")
    for name in ("u", "delta", "z", "B", "C"):
        tensors[name] = tensors[name].transpose(1, 2).contiguous().transpose(1, 2)
    _compare(tensors, options, _definition)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_returned(backend, dtype):
    tensors, options = _arguments("one group", "one group")
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    with use_backend(backend):
        y = selective_scan(**tensors, **options)
        again, last_state = selective_scan(**tensors, **options, return_last_state=True)
    assert y.shape == (2, 12, 37) and y.dtype == dtype and torch.equal(y, again)
    assert y.transpose(1, 2).is_contiguous()
    assert last_state.shape == (2, 12, 5)
    assert last_state.dtype == torch.promote_types(dtype, torch.float32)


def test_default_is_without_softplus():
    tensors, _ = _arguments("one group", "one group", delta_softplus=False)
    expected, _ = _definition(**tensors, delta_softplus=False)
    assert oracle.error(selective_scan(**tensors), expected) <= FLOAT32["y"]


def _repeat(x: torch.Tensor, pattern: str, H: int) -> torch.Tensor:
    assert pattern == "B G N L -> B (G H) N L"
    return x.repeat_interleave(H, dim=1)


def _rearrange(x: torch.Tensor, pattern: str) -> torch.Tensor:
    assert pattern == "d -> d 1"
    return x[:, None]


@pytest.fixture(scope="module")
def published():
    """mamba_ssm's `selective_scan_ref`, read out of its source: importing the module needs its CUDA extension."""
    folder = os.environ.get("VISION_SSM_MAMBA_SSM_SDIST")
    if not folder:
        pytest.skip("VISION_SSM_MAMBA_SSM_SDIST is not set: the unpacked source distribution of mamba_ssm")
    source = (Path(folder) / "mamba_ssm" / "ops" / "selective_scan_interface.py").read_text()
    tree = ast.parse(source)
    function = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "selective_scan_ref"]
    scope = dict(torch=torch, F=F, repeat=_repeat, rearrange=_rearrange)
    exec(compile(ast.Module(function, []), "selective_scan_interface.py", "exec"), scope)
    return scope["selective_scan_ref"]


@pytest.mark.parametrize("B", FORMS)
@pytest.mark.parametrize("C", FORMS)
@pytest.mark.parametrize(
    "options", [dict(), dict(z=False, delta_bias=False), dict(delta_softplus=False, D=False)], ids=str
)
def test_equals_mamba_ssm(published, B, C, options):
    """Theirs is float32 too, so errors of both sides add."""
    tensors, options = _arguments(B, C, **options)
    _compare(tensors, options, lambda **kwargs: published(**kwargs, return_last_state=True), tolerance=2)
