"""The selective scan beside mamba_ssm's sequential reference, mambapy's parallel scan and our own plain backends."""

import contextlib
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..ops import available_backends, scan_tokens, use_backend
from ..scan import cross, path_text, scan_tables
from .excerpt import define
from .timing import interleaved

__all__ = ["CASES", "Case", "load_published_reference", "run"]


@dataclass(frozen=True)
class Case:
    """One shape, batch 1, float32: K paths over `grid`, with softplus, bias and skip."""

    name: str
    paths: int
    channels: int
    grid: tuple[int, ...]
    d_state: int

    @property
    def tokens(self) -> int:
        return torch.Size(self.grid).numel()


CASES = (
    Case("Vim-T layer", 1, 384, (197,), 16),
    Case("VMamba-T stage 1", 4, 96, (56, 56), 1),
    Case("3D volume", 1, 64, (32, 32, 32), 16),
)
# Backward through the published loop is quadratic in the length: half an hour here.
_NO_BACKWARD = {("3D volume", "published reference")}


def load_published_reference(source: str | Path) -> Callable:
    """`selective_scan_ref` out of mamba_ssm's sources (its sdist, packed or unpacked), without importing the package.

    Raises:
        InputError: no such file, or no such function in it.
        ImportError: einops is missing.
    """
    member = "mamba_ssm/ops/selective_scan_interface.py"
    path = Path(source)
    try:
        text = _member(path, member)
    except (OSError, EOFError, tarfile.TarError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as mamba_ssm's sdist: {error}") from error
    if text is None or "def selective_scan_ref" not in text:
        raise InputError(f"{path} holds no {member}: expected mamba_ssm's sdist (pip download mamba_ssm)")
    from einops import rearrange, repeat

    return define(text, "selective_scan_ref", dict(torch=torch, F=F, rearrange=rearrange, repeat=repeat))


def _member(path: Path, member: str) -> str | None:
    """The text of a file in a folder or an archive, None if there is none."""
    if path.is_dir():
        found = sorted(path.rglob(member))
        return found[0].read_text(encoding="utf-8") if found else None
    if not path.is_file():
        return None
    with tarfile.open(path) as archive:
        names = [name for name in archive.getnames() if name.endswith(member)]
        return archive.extractfile(names[0]).read().decode() if names else None


def _inputs(case: Case) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    K, D, L, N = case.paths, case.channels, case.tokens, case.d_state
    randn = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return dict(
        u=randn(1, 1, L, D),
        dt=0.5 * randn(1, K, L, D),
        A=-torch.arange(1.0, N + 1).expand(K, D, N).contiguous(),
        B=randn(1, K, L, 1, N),
        C=randn(1, K, L, 1, N),
        D=randn(K, D),
        dt_bias=randn(K, D) - 4,
    )


def _ours(case: Case, x: dict[str, Tensor]) -> Callable[[], Tensor]:
    tables = scan_tables(path_text(cross()), list(case.grid), x["u"]) if case.paths == 4 else None
    return lambda: scan_tokens(x["u"], x["dt"], x["A"], x["B"], x["C"], x["D"], None, x["dt_bias"], None, tables)


def _sequences(case: Case, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same problem as a peer wants it: one sequence a path, copied into its order, before any clock runs."""
    if case.paths == 1:
        return x
    order = scan_tables(path_text(cross()), list(case.grid), x["u"])[0].long()
    along = lambda t: torch.stack([t[:, min(k, t.shape[1] - 1), order[k]] for k in range(case.paths)], 1)  # noqa: E731
    return x | {name: along(x[name]).contiguous() for name in ("u", "dt", "B", "C")}


def _published(reference: Callable, case: Case, s: dict[str, Tensor]) -> Callable[[], Tensor]:
    """As VMamba calls it: paths are groups of channels, (batch, channels, length)."""
    channels_first = lambda t: t.permute(0, 1, 3, 2).flatten(1, 2).contiguous()  # noqa: E731
    leaves = dict(
        u=channels_first(s["u"]), dt=channels_first(s["dt"]), A=s["A"].flatten(0, 1),
        B=s["B"][:, :, :, 0].transpose(2, 3).contiguous(), C=s["C"][:, :, :, 0].transpose(2, 3).contiguous(),
        D=s["D"].flatten(), bias=s["dt_bias"].flatten(),
    )  # fmt: skip
    leaves = {k: v.detach().requires_grad_(v.requires_grad or s["A"].requires_grad) for k, v in leaves.items()}
    u, dt, A, B, C, D, bias = leaves.values()

    def call() -> Tensor:
        y = reference(u, dt, A, B, C, D, None, bias, True)
        return y.unflatten(1, (case.paths, -1))

    call.leaves = list(leaves.values())
    return call


def _mambapy(case: Case, s: dict[str, Tensor]) -> Callable[[], Tensor]:
    """mambapy's parallel scan (batch, length, channels, states), the paths in the batch."""
    from mambapy.pscan import pscan

    names = ("u", "dt", "A", "B", "C", "D", "dt_bias")
    leaves = {k: s[k].detach().clone().requires_grad_(s["A"].requires_grad) for k in names}

    def call() -> Tensor:
        u, dt, A, B, C, D, bias = leaves.values()
        delta = F.softplus(dt[0] + bias[:, None])
        decay = torch.exp(delta.unsqueeze(-1) * A[:, None])
        inputs = (delta * u[0]).unsqueeze(-1) * B[0]
        y = (pscan(decay, inputs) @ C[0, :, :, 0].unsqueeze(-1)).squeeze(-1)
        return y + D[:, None] * u[0]

    call.leaves = list(leaves.values())
    return call


def _error(ours: Tensor, peer: Tensor, case: Case, kind: str) -> float:
    """Largest difference of a peer's output from ours, relative; the peers leave the merge of paths to the caller."""
    if kind == "published reference":
        peer = peer[0].transpose(1, 2)  # (paths, tokens, channels)
    if case.paths > 1 and kind in ("published reference", "mambapy"):
        order = scan_tables(path_text(cross()), list(case.grid), ours)[1].long()
        peer = sum(torch.zeros_like(peer[k]).index_copy(0, order[k], peer[k]) for k in range(case.paths))
    peer = peer.reshape(ours.shape)
    return ((peer - ours).abs().max() / ours.abs().max()).item()


def _contestants(case: Case, reference: Callable | None, grad: bool) -> dict[str, Callable[[], Tensor]]:
    x = {name: value.requires_grad_(grad) for name, value in _inputs(case).items()}
    ours = _ours(case, x)

    def on(backend: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with use_backend(backend):
                return ours()

        call.backend = backend
        return call

    calls = {name: on(name) for name in ("cpu", "chunked") if name in available_backends()}
    with torch.no_grad():
        sequences = _sequences(case, {k: v.detach() for k, v in x.items()})
    sequences = {k: v.detach().requires_grad_(grad) for k, v in sequences.items()}
    if reference is not None and not (grad and (case.name, "published reference") in _NO_BACKWARD):
        calls["published reference"] = _published(reference, case, sequences)
    with contextlib.suppress(ImportError):
        calls["mambapy"] = _mambapy(case, sequences)
    for name in ("cpu", "chunked"):
        if name in calls:
            calls[name].leaves = list(x.values())
    return calls


def run(reference: Callable | None = None, rounds: int = 30, seconds: float = 60.0) -> list[dict]:
    """Times of every case, forward and forward with backward, in milliseconds; and each peer's deviation from us.

    Raises:
        RuntimeError: a peer computes something else, so a ratio would mean nothing.
    """
    results = []
    for case in CASES:
        for grad in (False, True):
            calls = _contestants(case, reference, grad)
            ours = next(iter(calls.values()))().detach()
            errors = {name: _error(ours, call().detach(), case, name) for name, call in calls.items()}
            if wrong := {name: error for name, error in errors.items() if not error < 1e-4}:
                raise RuntimeError(f"{case.name}: other results than ours, {wrong}")

            def backward(call: Callable[[], Tensor]) -> Callable[[], object]:
                def run() -> tuple[Tensor, ...]:
                    backend = getattr(call, "backend", None)  # of both passes
                    with use_backend(backend) if backend else contextlib.nullcontext():
                        return torch.autograd.grad(call().sum(), call.leaves)

                return run

            timed = {name: backward(call) if grad else call for name, call in calls.items()}
            with torch.set_grad_enabled(grad):
                times = interleaved(timed, rounds, seconds, twice=True)
            results.append(
                dict(case=case.name, paths=case.paths, channels=case.channels, tokens=case.tokens, d_state=case.d_state,
                     what="forward+backward" if grad else "forward", times_ms=times, deviation=errors)
            )  # fmt: skip
    return results
