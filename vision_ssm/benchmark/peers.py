"""The contestants of a scan on a GPU: ours, and each peer that is installed, or why it is absent."""

import ast
import contextlib
import functools
import importlib.util
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..ops import current_backend, use_backend
from .cases import Problem
from .copies import copy_scan_merge
from .excerpt import define
from .meter import copies_needed
from .traffic import size

__all__ = ["Absent", "Contestant", "contestants", "load_mamba_ssm", "time_limit"]

Leaves = dict[str, Tensor]

COMPILE_SECONDS = 90
LONGEST_COMPILED = 4096  # tokens; unrolled loops over longer sequences compile for many minutes


class Absent(Exception):
    """A peer takes no part; the message is the reason."""


@dataclass
class Contestant:
    """An implementation with its inputs, in the layout that it wants."""

    forward: Callable[[Leaves], Tensor]
    sets: list[tuple[Leaves, Tensor]]  # inputs and the gradient of the output: equal values, memory of their own
    to_ours: Callable[[str, Tensor], Tensor] = lambda name, value: value  # "y" or an input, into our layout
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext  # around both passes
    notes: dict[str, object] = field(default_factory=dict)  # for the result file

    def run(self, backward: bool, inputs: tuple[Leaves, Tensor]) -> tuple[Tensor, ...]:
        """(y,), or with `backward` the gradients of all inputs."""
        leaves, gradient = inputs
        with self.context(), torch.set_grad_enabled(backward):
            y = self.forward(leaves)
            return torch.autograd.grad(y, list(leaves.values()), gradient) if backward else (y,)

    def results(self, backward: bool) -> Leaves:
        """What the first set gives, by name, in our layout."""
        leaves = self.sets[0][0]
        values = self.run(backward, self.sets[0])
        return {n: self.to_ours(n, v) for n, v in zip(leaves if backward else ("y",), values, strict=True)}


def _sets(varying: Leaves, shared: Leaves, gradient: Tensor, cache_bytes: int) -> list[tuple[Leaves, Tensor]]:
    """As many copies of the inputs that vary, and of the gradient, as twice the cache holds."""
    count = copies_needed(size([*varying.values(), gradient]), cache_bytes)
    copies = [
        ({name: value.detach().clone().requires_grad_() for name, value in varying.items()}, gradient.clone())
        for _ in range(count)
    ]
    return [(leaves | shared, d) for leaves, d in copies]


def load_mamba_ssm() -> Callable[..., Tensor]:
    """The autograd function over mamba_ssm's CUDA kernel, with the signature of `selective_scan_fn`.

    It is taken out of the package's source: importing mamba_ssm imports all of its models' dependencies too.

    Raises:
        Absent: the kernel or the package is not installed.
    """
    try:
        import selective_scan_cuda
        from einops import rearrange
    except ImportError as error:
        raise Absent(f"mamba_ssm's kernel is not installed ({error}); see tools/gpu/build_mamba_ssm.py") from error
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None or not spec.submodule_search_locations:
        raise Absent("selective_scan_cuda is installed, but not the package mamba_ssm")
    source = Path(spec.submodule_search_locations[0]) / "ops" / "selective_scan_interface.py"
    scope = dict(torch=torch, selective_scan_cuda=selective_scan_cuda, rearrange=rearrange)
    function = define(source.read_text(encoding="utf-8"), "SelectiveScanFn", scope) if source.is_file() else None
    if function is None:
        raise Absent("the installed mamba_ssm has no SelectiveScanFn")

    def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        return function.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, False)

    return scan


def _mamba_ssm(problem: Problem, cache_bytes: int, scan: Callable[..., Tensor]) -> Contestant:
    case = problem.case
    if case.rank:
        maps = lambda x: x.transpose(2, 3).unflatten(3, case.grid).contiguous()  # noqa: E731
        varying, gradient = dict(x=maps(problem.inputs["x"].detach())), maps(problem.gradient).squeeze(1)

        def forward(x: Leaves) -> Tensor:
            return copy_scan_merge(scan, problem.module, x["x"], case.paths)

        def to_ours(name: str, value: Tensor) -> Tensor:
            return value.reshape(case.batch, 1, case.channels, -1).transpose(2, 3) if name in ("x", "y") else value

        return Contestant(forward, _sets(varying, problem.shared, gradient, cache_bytes), to_ours)

    def native(name: str, value: Tensor) -> Tensor:
        """(batch, 1, tokens, ...) to (batch, ..., tokens)"""
        return value.squeeze(3 if name in ("B", "C") else 1).reshape(case.batch, case.tokens, -1).transpose(1, 2)

    def forward(x: Leaves) -> Tensor:
        bias = x["dt_bias"].squeeze(0)
        return scan(x["u"], x["dt"], x["A"].squeeze(0), x["B"], x["C"], x["D"].squeeze(0), x.get("z"), bias, True)

    def to_ours(name: str, value: Tensor) -> Tensor:
        if name in problem.shared:
            return value
        value = value.transpose(1, 2).unsqueeze(1)
        return value.unsqueeze(3) if name in ("B", "C") else value

    varying = {name: native(name, problem.inputs[name].detach()).contiguous() for name in problem.varying}
    gradient = native("y", problem.gradient).contiguous()
    return Contestant(forward, _sets(varying, problem.shared, gradient, cache_bytes), to_ours)


def _fla() -> Contestant:
    """flash-linear-attention has a Mamba layer, but no scan for it.

    Raises:
        Absent: always, with what was found.
    """
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        raise Absent("not installed")
    source = Path(spec.submodule_search_locations[0]) / "layers" / "mamba.py"
    if not source.is_file():
        raise Absent("it has no Mamba layer")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    origins = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "selective_scan_fn" for alias in node.names)
    }
    if any(origin and origin.startswith("mamba_ssm") for origin in origins):
        raise Absent("its Mamba layer calls mamba_ssm's kernel, which is a contestant itself")
    raise Absent(f"its Mamba layer takes its scan from {sorted(map(str, origins))}, which this benchmark does not know")


class _OutOfTime(BaseException):
    """Not an Exception, so that no handler on the way takes it for a failure of its own."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise Absent inside this context after so many seconds; without effect outside the main thread or on Windows."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except _OutOfTime:
        raise Absent(f"not ready after {seconds} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _compiled(problem: Problem, sets: list[tuple[Leaves, Tensor]], backward: bool) -> Contestant:
    """`chunked` written out as PyTorch operations and compiled; autograd differentiates through them.

    Raises:
        Absent: the sequence is too long, or compiling takes too long.
    """
    if problem.case.tokens > LONGEST_COMPILED:
        raise Absent(f"not compiled beyond {LONGEST_COMPILED} tokens: it takes minutes")
    torch.compiler.reset()
    compiled = torch.compile(problem.forward, dynamic=False)
    contestant = Contestant(compiled, sets, context=functools.partial(use_backend, "chunked", decompose=True))
    start = time.perf_counter()
    with time_limit(COMPILE_SECONDS):
        contestant.run(backward, sets[0])
    contestant.notes["compile_seconds"] = round(time.perf_counter() - start, 1)
    return contestant


def contestants(problem: Problem, cache_bytes: int, backward: bool) -> Iterator[tuple[str, Callable[[], Contestant]]]:
    """(name, how to make it) of ours, which comes first, and of the peers; making one may raise Absent."""
    varying = {name: problem.inputs[name] for name in problem.varying}

    @functools.cache
    def sets() -> list[tuple[Leaves, Tensor]]:
        return _sets(varying, problem.shared, problem.gradient, cache_bytes)

    ours = current_backend(problem.gradient.device, problem.gradient.dtype)
    yield ours, lambda: Contestant(problem.forward, sets())
    yield "mamba_ssm", lambda: _mamba_ssm(problem, cache_bytes, load_mamba_ssm())
    yield "flash-linear-attention", _fla
    yield "chunked", lambda: Contestant(problem.forward, sets(), context=functools.partial(use_backend, "chunked"))
    yield "compiled chunked", lambda: _compiled(problem, sets(), backward)
