"""The mixers as the papers' code computes them: float64, every scan order an explicit flip, transpose or copy.

Written from the definitions, on the oracle's scan and convolution; of the package only the parameters' names are used
(`p` is a layer's state dict).
"""

import torch
import torch.nn.functional as F
from ops import oracle
from torch import Tensor

Parameters = dict[str, Tensor]


def ssm(p: Parameters, k: int, x: Tensor) -> Tensor:
    """The k-th parameter set's selective SSM along x (batch, length, channels)."""

    def own(name: str) -> Tensor:  # parameter sets may be shared
        return p[f"ssm.{name}"][min(k, len(p[f"ssm.{name}"]) - 1)]

    rank, states = own("dt_proj").shape[1], own("A_log").shape[1]
    dt, B, C = (x @ own("x_proj").T).split([rank, states, states], dim=-1)
    y, _ = oracle.scan(
        x[:, None], (dt @ own("dt_proj").T)[:, None], -torch.exp(own("A_log"))[None], B[:, None, :, None],
        C[:, None, :, None], own("D")[None], dt_bias=own("dt_bias")[None],
    )  # fmt: skip
    return y[:, 0]


def conv1d(p: Parameters, k: int, x: Tensor) -> Tensor:
    """The k-th causal convolution along x (batch, length, channels), with SiLU."""
    bias = p["conv1d.bias"][k : k + 1] if "conv1d.bias" in p else None
    return oracle.conv(x[:, None], p["conv1d.weight"][k : k + 1], bias)[:, 0]


def path_gate(p: Parameters, outputs: list[Tensor]) -> Tensor:
    """LocalMamba's BiAttn on each direction's (batch, length, channels), then the sum."""
    total = 0
    for y in outputs:
        normed = F.layer_norm(y, y.shape[-1:], p["path_gate.norm.weight"], p["path_gate.norm.bias"])
        hidden = F.gelu(F.linear(normed.mean(1), p["path_gate.reduce.weight"], p["path_gate.reduce.bias"]))
        weight = torch.sigmoid(F.linear(hidden, p["path_gate.expand.weight"], p["path_gate.expand.bias"]))
        total = total + y * weight[:, None]
    return total


def mamba(p: Parameters, x: Tensor, bidirectional: str | None, average: bool = True) -> Tensor:
    """Mamba (None) and Vim's two bidirectional forms."""
    u, z = F.linear(x, p["in_proj.weight"], p.get("in_proj.bias")).chunk(2, dim=-1)
    if bidirectional is None:
        y = ssm(p, 0, conv1d(p, 0, u)) * F.silu(z)
    elif bidirectional == "v1":
        u = conv1d(p, 0, u)
        y = ssm(p, 0, u) * F.silu(z) + (ssm(p, 1, u.flip(1)) * F.silu(z.flip(1))).flip(1)
    else:
        forward = ssm(p, 0, conv1d(p, 0, u)) * F.silu(z)
        backward = ssm(p, 1, conv1d(p, 1, u.flip(1))) * F.silu(z.flip(1))
        y = (forward + backward.flip(1)) / (2 if average else 1)
    y = F.linear(y, p["out_proj.weight"], p.get("out_proj.bias"))
    return y * p["gamma"] if "gamma" in p else y


def arrange(x: Tensor, direction: str, height: int, width: int) -> Tensor:
    """(batch, height * width, channels) in the order of a LocalMamba direction, windows padded with zeros."""
    x = x.unflatten(1, (height, width))
    kind = direction.rstrip("-")
    if kind == "v":
        x = x.transpose(1, 2)
    elif kind != "h":
        w = int(kind[1:])
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))
        x = x.unflatten(1, (-1, w)).unflatten(3, (-1, w)).permute(0, 1, 3, 2, 4, 5).flatten(2, 4)
    x = x.flatten(1, 2)
    return x.flip(1) if direction.endswith("-") else x


def restore(y: Tensor, direction: str, height: int, width: int, twice: bool = False) -> Tensor:
    """The inverse of `arrange`; with `twice`, columns are put back as the published code does."""
    y = y.flip(1) if direction.endswith("-") else y
    kind = direction.rstrip("-")
    if kind == "v":
        y = y.unflatten(1, (height, width) if twice else (width, height)).transpose(1, 2).flatten(1, 2)
    elif kind != "h":
        w = int(kind[1:])
        rows, columns = -(-height // w), -(-width // w)
        y = y.unflatten(1, (rows, columns, w, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        y = y[:, :height, :width].flatten(1, 2)
    return y


def local_mamba(
    p: Parameters, x: Tensor, directions: list[str], height: int, width: int, twice: bool = False, middle: bool = False
) -> Tensor:
    """LocalVim's mixer; with `middle`, a class token stands in the middle of the tokens and of every scan."""
    u, z = (x @ p["in_proj.weight"].T).chunk(2, dim=-1)
    m, outputs = height * width // 2, []

    def take_out(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([x[:, :m], x[:, m + 1 :]], 1), x[:, m : m + 1]

    def insert(x: Tensor, token: Tensor) -> Tensor:
        return torch.cat([x[:, :m], token, x[:, m:]], 1)

    for k, direction in enumerate(directions):
        branch = []
        for x in (u, z):
            tokens, token = take_out(x) if middle else (x, None)
            tokens = arrange(tokens, direction, height, width)
            branch.append(insert(tokens, token) if middle else tokens)
        y = ssm(p, k, conv1d(p, k, branch[0])) * F.silu(branch[1])
        tokens, token = take_out(y) if middle else (y, None)
        tokens = restore(tokens, direction, height, width, twice)
        outputs.append(insert(tokens, token) if middle else tokens)
    return path_gate(p, outputs) @ p["out_proj.weight"].T


def out_norm(p: Parameters, x: Tensor, kind: str) -> Tensor:
    """What stands after the scans, on (batch, channels, height, width)."""
    if kind.startswith("layer"):
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2], p["out_norm.norm.weight"], p["out_norm.norm.bias"]).movedim(
            -1, 1
        )
    if kind.endswith("dwconv"):
        x = F.conv2d(x, p["out_norm.conv.weight"], padding=1, groups=x.shape[1])
    if kind == "softmax":
        x = torch.softmax(x.flatten(2), dim=2).view_as(x)
    if kind == "sigmoid":
        x = torch.sigmoid(x)
    return x


def cross_scan(p: Parameters, x: Tensor) -> Tensor:
    """VMamba's four directions on (batch, channels, height, width), summed."""
    height, width = x.shape[2:]
    rows, columns = x.flatten(2).transpose(1, 2), x.transpose(2, 3).flatten(2).transpose(1, 2)
    by_row = ssm(p, 0, rows) + ssm(p, 2, rows.flip(1)).flip(1)
    by_column = ssm(p, 1, columns) + ssm(p, 3, columns.flip(1)).flip(1)
    to_map = lambda y, *size: y.transpose(1, 2).unflatten(2, size)  # noqa: E731
    return to_map(by_row, height, width) + to_map(by_column, width, height).transpose(2, 3)


def local_scan(p: Parameters, x: Tensor, directions: list[str], gate: bool, twice: bool = False) -> Tensor:
    """LocalVMamba's directions on (batch, channels, height, width); pads are exact zeros before the projections."""
    height, width = x.shape[2:]
    tokens = x.flatten(2).transpose(1, 2)
    outputs = [
        restore(ssm(p, k, arrange(tokens, direction, height, width)), direction, height, width, twice)
        for k, direction in enumerate(directions)
    ]
    return (path_gate(p, outputs) if gate else sum(outputs)).transpose(1, 2).unflatten(2, (height, width))


def cascade_scan(p: Parameters, x: Tensor) -> Tensor:
    """Every row alone in both directions, then every column; the reversed outputs are added as they come."""
    for first in (0, 2):
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
        lines = []
        for line in x.unbind(2):  # (batch, channels, width)
            line = line.transpose(1, 2)
            lines.append((ssm(p, first, line) + ssm(p, first + 1, line.flip(1))).transpose(1, 2))
        x = torch.stack(lines, 2).transpose(2, 3)
    return x


def ss2d(
    p: Parameters, x: Tensor, scan, gate: str | None = "silu", norm: str = "layer", act=F.silu, out_act: bool = False
) -> Tensor:
    """VMamba's mixer around a scan of maps, (batch, height, width, dim); the maps lie channels first inside."""
    x = F.linear(x, p["in_proj.weight"], p.get("in_proj.bias"))
    x, z = x.chunk(2, dim=-1) if gate else (x, None)
    x = x.movedim(-1, 1)
    if "conv2d.weight" in p:
        weight = p["conv2d.weight"]
        x = F.conv2d(x, weight, p.get("conv2d.bias"), padding=weight.shape[2] // 2, groups=len(weight))
    y = out_norm(p, scan(p, act(x)), norm).movedim(1, -1)
    y = F.gelu(y) if out_act else y
    if gate:
        y = y * (F.silu(z) if gate == "silu" else z)
    return F.linear(y, p["out_proj.weight"], p.get("out_proj.bias"))
