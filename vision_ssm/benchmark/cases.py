"""The scans that are timed on GPUs: their shapes, their inputs, and what this package computes from them."""

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..layers import SelectiveSSM
from ..ops import scan_tokens
from ..scan import ScanPath, cross, path_text, scan_tables

__all__ = ["CASES", "Case", "Problem", "make_problem", "matches", "select"]


@dataclass(frozen=True)
class Case:
    """One shape.

    Without `rank` it is the scan of one path alone: u, dt at full width, B and C given, optionally a gate z. With
    `rank` it is the core of a layer, from x to the merged y: x_proj, dt of low rank, the scans along `paths`, their
    sum, as `SelectiveSSM` does it.
    """

    name: str  # what `--cases` matches
    label: str
    batch: int
    channels: int
    grid: tuple[int, ...]
    d_state: int
    paths: tuple[ScanPath, ...] = ()
    rank: int = 0
    gate: bool = False
    dtype: torch.dtype = torch.bfloat16

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def path_count(self) -> int:
        return max(1, len(self.paths))

    def describe(self) -> dict[str, object]:
        """What a result file says of it."""
        return dict(
            case=self.name,
            label=self.label,
            batch=self.batch,
            channels=self.channels,
            grid=list(self.grid),
            tokens=self.tokens,
            d_state=self.d_state,
            paths=[str(path) for path in self.paths] or ["row by row"],
            rank=self.rank,
            gate=self.gate,
            dtype=str(self.dtype).removeprefix("torch."),
        )


def _vim(name: str, label: str, batch: int, tokens: int, **options) -> Case:
    return Case(name, label, batch, 384, (tokens,), 16, gate=True, **options)


def _ss2d(batch: int, channels: int) -> Case:
    label = f"VMamba-T stage 1, {channels} channels, batch {batch}"
    return Case(f"ss2d_{channels}_b{batch}", label, batch, channels, (56, 56), 1, cross(), 6)


CASES = (
    _vim("vim_b128", "Vim-T layer, batch 128", 128, 197),
    _vim("vim_b128_float16", "Vim-T layer, batch 128, float16", 128, 197, dtype=torch.float16),
    _vim("vim_b1", "Vim-T layer, batch 1", 1, 197),
    _vim("vim_1248_b8", "Vim-T layer at 1248x1248, batch 8", 8, 6085),
    _vim("vim_1248_b1", "Vim-T layer at 1248x1248, batch 1", 1, 6085),
    _ss2d(128, 96),
    _ss2d(128, 192),
    _ss2d(1, 96),
    _ss2d(1, 192),
    Case("sequence", "one sequence of 262144 tokens", 1, 64, (2**18,), 16),
    Case("volume", "volume of 128x128x128, three paths", 1, 64, (128,) * 3, 16, cross(3)[:3], 4),
)


def matches(name: str, pattern: str | None) -> bool:
    """Whether a name matches one of the shell patterns, separated by commas; any does for None."""
    return pattern is None or any(fnmatch.fnmatch(name, part) for part in pattern.split(","))


def select(names: Sequence[str], pattern: str | None) -> list[str]:
    """Those of `names` that match.

    Raises:
        InputError: none does.
    """
    found = [name for name in names if matches(name, pattern)]
    if not found:
        raise InputError(f"no case matches {pattern!r}: expected some of {', '.join(names)}")
    return found


@dataclass
class Problem:
    """The inputs of a case in this package's layout, and the function of them that every contestant computes."""

    case: Case
    inputs: dict[str, Tensor]  # leaves that require gradients
    varying: tuple[str, ...]  # inputs that change from call to call; the others are parameters
    gradient: Tensor  # of the output
    forward: Callable[[dict[str, Tensor]], Tensor]
    module: SelectiveSSM | None = None  # owns the parameters of a core

    @property
    def shared(self) -> dict[str, Tensor]:
        """The parameters."""
        return {name: value for name, value in self.inputs.items() if name not in self.varying}


def _scan_problem(case: Case, device: torch.device) -> Problem:
    g = torch.Generator(device).manual_seed(0)
    batch, L, D, N = case.batch, case.tokens, case.channels, case.d_state
    randn = lambda *shape: torch.randn(*shape, generator=g, device=device)  # noqa: E731
    wide = dict(u=randn(batch, 1, L, D), dt=0.5 * randn(batch, 1, L, D))
    if case.gate:
        wide["z"] = randn(batch, 1, L, D)
    wide |= dict(B=randn(batch, 1, L, 1, N), C=randn(batch, 1, L, 1, N))
    inputs = {name: value.to(case.dtype) for name, value in wide.items()}
    gradient = randn(batch, 1, L, D).to(case.dtype)
    inputs |= dict(
        A=-torch.arange(1.0, N + 1, device=device).expand(1, D, N).contiguous(), D=randn(1, D), dt_bias=randn(1, D) - 4
    )

    def forward(x: dict[str, Tensor]) -> Tensor:
        return scan_tokens(x["u"], x["dt"], x["A"], x["B"], x["C"], x["D"], x.get("z"), x["dt_bias"])

    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    return Problem(case, leaves, tuple(wide), gradient, forward)


def _core_problem(case: Case, device: torch.device) -> Problem:
    g = torch.Generator(device).manual_seed(0)
    shape = case.batch, 1, case.tokens, case.channels
    x, gradient = (torch.randn(shape, generator=g, device=device).to(case.dtype) for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = SelectiveSSM(case.channels, case.d_state, case.rank, case.path_count).to(device)
    tables = scan_tables(path_text(case.paths), list(case.grid), x)

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast(x.device.type, case.dtype, enabled=case.dtype != torch.float32):
            return module(inputs["x"], tables)

    inputs = dict(x=x.requires_grad_()) | dict(module.named_parameters())
    return Problem(case, inputs, ("x",), gradient, forward, module)


def make_problem(case: Case, device: torch.device | str) -> Problem:
    """A case with random inputs, the same ones each time."""
    return (_core_problem if case.rank else _scan_problem)(case, torch.device(device))
