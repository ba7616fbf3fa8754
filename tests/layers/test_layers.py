"""The mixers against explicit-copy implementations, on square and non-square grids, outputs and all gradients."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from layers import explicit
from ops import oracle

from vision_ssm.layers import SS2D, CascadeSS2D, LocalMamba, Mamba, PathGate, one_way, rotary_tables, rotate, two_way
from vision_ssm.ops import available_backends, use_backend
from vision_ssm.scan import Middle, Restored, Window, column, row

BACKENDS = [name for name in available_backends() if name != "reference"]  # those that users meet
GRIDS = [(4, 4), (3, 5), (5, 2)]
OUTPUT, GRADIENT = 3e-6, 2e-5  # a chain of five float32 stages


def _shaken(layer: torch.nn.Module) -> torch.nn.Module:
    """No parameter at a value that hides a mistake: ones, zeros, or the same for every path."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layer


def _compare(layer, reference, *shape: int, arguments=(), backends=BACKENDS) -> None:
    """Hold output and every gradient of `layer` against `reference(parameters, input)`."""
    x = torch.randn(shape)
    parameters = {name: value.detach().double().requires_grad_() for name, value in layer.named_parameters()}
    wide = x.double().requires_grad_()
    expected = reference(parameters, wide)
    dy = torch.randn(expected.shape)
    gradients = torch.autograd.grad(expected, [wide, *parameters.values()], dy.double())
    for backend in backends:
        with use_backend(backend):
            leaf = x.clone().requires_grad_()
            y = layer(leaf, *arguments)
            assert oracle.error(y, expected) <= OUTPUT, backend
            layer.zero_grad()
            y.backward(dy)
        ours = [leaf.grad, *(value.grad for value in layer.parameters())]
        for name, a, b in zip(["input", *parameters], ours, gradients, strict=True):
            assert a is not None, f"{name} has no gradient"
            assert a.any() == b.any(), f"the gradient of {name} is zero"
            assert oracle.error(a, b) <= GRADIENT, f"{backend}: gradient of {name}"


MAMBAS = [
    dict(bidirectional=None),
    dict(bidirectional="v1"),
    dict(bidirectional="v2"),
    dict(bidirectional="v2", average=False, bias=True, layer_scale=0.5),
    dict(bidirectional="v1", conv_bias=False, d_conv=2, d_state=3, dt_rank=5, expand=1),
]


@pytest.mark.parametrize("kwargs", MAMBAS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 19])
def test_mamba(kwargs, length):
    layer = _shaken(Mamba(20, **kwargs))
    form = kwargs["bidirectional"], kwargs.get("average", True)
    _compare(layer, lambda p, x: explicit.mamba(p, x, *form), 2, length, 20)


def test_mamba_is_causal_only_without_bidirectional():
    x = torch.randn(1, 9, 8)
    changed = x.clone()
    changed[:, 5] += 1
    for form, first in ((None, 5), ("v1", 0), ("v2", 0)):
        layer = Mamba(8, bidirectional=form)
        difference = (layer(x) - layer(changed)).abs().amax((0, 2)) > 0
        assert difference.tolist() == [step >= first for step in range(9)]


def _path(direction: str, twice: bool = False):
    kind = direction.rstrip("-")
    path = {"h": row(), "v": Restored(column()) if twice else column()}.get(kind) or Window(int(kind[1:]))
    return path.reversed() if direction.endswith("-") else path


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("directions", "middle"),
    [
        (["h", "h-", "v", "v-"], False),
        (["w2", "w2-", "w3", "w3-"], False),
        (["v-", "w2", "h"], False),
        (["h", "v", "v-"], True),
    ],
    ids=str,
)
def test_local_mamba(grid, directions, middle):
    paths = [_path(direction) for direction in directions]
    layer = _shaken(LocalMamba(16, [Middle(path) for path in paths] if middle else paths, d_state=4))
    reference = partial(explicit.local_mamba, directions=directions, height=grid[0], width=grid[1], middle=middle)
    _compare(layer, reference, 2, math.prod(grid) + middle, 16, arguments=([*grid],))


def test_local_mamba_with_windows_around_a_class_token():
    """Windows that fit the grid, as those of the published model fit its 14x14 tokens."""
    layer = _shaken(LocalMamba(16, [Middle(_path(direction)) for direction in ("w2-", "h", "w2")], d_state=4))
    reference = partial(explicit.local_mamba, directions=["w2-", "h", "w2"], height=4, width=6, middle=True)
    _compare(layer, reference, 2, 25, 16, arguments=([4, 6],))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_columns_restored_as_in_the_published_code(grid):
    directions = ["h", "v", "v-"]
    layer = _shaken(LocalMamba(16, [_path(direction, True) for direction in directions], d_state=4))
    reference = partial(explicit.local_mamba, directions=directions, height=grid[0], width=grid[1], twice=True)
    _compare(layer, reference, 2, math.prod(grid), 16, arguments=([*grid],))


SS2DS = [
    dict(),
    dict(gate=None, conv_bias=False, d_state=1, expand=1.0),  # v05_noz
    dict(gate="linear", out_norm="none", bias=True),
    dict(out_norm="dwconv", d_conv=1),
    dict(out_norm="layer_dwconv", d_conv=5, dt_rank=3),
    dict(out_norm="softmax", gate=None, out_act=True),
    dict(out_norm="sigmoid", act="gelu", expand=1.5),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kwargs", SS2DS, ids=str)
def test_ss2d(grid, kwargs):
    layer = _shaken(SS2D(16, **(dict(d_state=4) | kwargs)))
    act = F.gelu if kwargs.get("act") == "gelu" else F.silu
    options = dict(
        gate=kwargs.get("gate", "silu"), norm=kwargs.get("out_norm", "layer"), out_act=kwargs.get("out_act", False)
    )
    reference = partial(explicit.ss2d, scan=explicit.cross_scan, act=act, **options)
    _compare(layer, reference, 2, *grid, 16)


@pytest.mark.parametrize(("paths", "directions"), [(one_way(), ["h"] * 4), (two_way(), ["h", "h", "h-", "h-"])])
def test_ss2d_by_rows(paths, directions):
    """VMamba's ablations v051d and v052d."""
    scan = partial(explicit.local_scan, directions=directions, gate=False)
    _compare(_shaken(SS2D(16, paths=paths, d_state=4)), partial(explicit.ss2d, scan=scan), 2, 3, 5, 16)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("twice", [False, True])
def test_ss2d_with_path_gate(grid, twice):
    """LocalVMamba: windows of several sizes, so that the shorter scans are padded at their ends."""
    directions = ["h", "v-", "w2", "w3-", "v"]
    layer = _shaken(SS2D(16, paths=[_path(name, twice) for name in directions], path_gate=True, d_state=4))
    scan = partial(explicit.local_scan, directions=directions, gate=True, twice=twice)
    _compare(layer, partial(explicit.ss2d, scan=scan), 2, *grid, 16)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_cascade(grid):
    layer = _shaken(CascadeSS2D(16, d_state=4, gate=None))
    _compare(layer, partial(explicit.ss2d, scan=explicit.cascade_scan, gate=None), 2, *grid, 16)


LAYERS = {
    "Mamba": (lambda: Mamba(16, bidirectional="v2"), (2, 6, 16), ()),
    "LocalMamba": (lambda: LocalMamba(16, [row(), Window(2)]), (2, 6, 16), ([2, 3],)),
    "SS2D": (lambda: SS2D(16), (2, 2, 3, 16), ()),
    "CascadeSS2D": (lambda: CascadeSS2D(16), (2, 2, 3, 16), ()),
    "PathGate": (lambda: PathGate(16), (2, 3, 5, 16), ()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_round_trip(name, tmp_path):
    make, shape, arguments = LAYERS[name]
    first, second, x = _shaken(make()), make(), torch.randn(shape)
    torch.save(first.state_dict(), tmp_path / "layer.pt")
    second.load_state_dict(torch.load(tmp_path / "layer.pt"))
    assert torch.equal(first(x, *arguments), second(x, *arguments))


@pytest.mark.parametrize("name", LAYERS)
def test_inference_mode(name):
    make, shape, arguments = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    expected = layer(x, *arguments)
    with torch.inference_mode():
        assert torch.equal(layer(x, *arguments), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_float64(name):
    """A layer in double precision computes in double precision."""
    make, shape, arguments = LAYERS[name]
    layer, x = _shaken(make()).double(), torch.randn(shape, dtype=torch.float64)
    references = {
        "Mamba": lambda p, x: explicit.mamba(p, x, "v2"),
        "LocalMamba": lambda p, x: explicit.local_mamba(p, x, ["h", "w2"], 2, 3),
        "SS2D": partial(explicit.ss2d, scan=explicit.cross_scan),
        "CascadeSS2D": partial(explicit.ss2d, scan=explicit.cascade_scan),
        "PathGate": lambda p, y: explicit.path_gate({f"path_gate.{n}": v for n, v in p.items()}, list(y.unbind(1)))[
            :, None
        ],
    }
    expected = references[name](dict(layer.named_parameters()), x)
    y = layer(x, *arguments)
    assert y.dtype == torch.float64 and oracle.error(y, expected) <= 1e-10


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision(name, dtype):
    make, shape, arguments = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    expected = layer(x, *arguments)
    with torch.autocast("cpu", dtype):
        assert oracle.error(layer(x, *arguments).float(), expected) <= 5e-2
    y = layer.to(dtype)(x.to(dtype), *arguments)
    assert y.dtype == dtype and oracle.error(y, expected) <= 5e-2


@pytest.mark.parametrize("states", [1, 16])
def test_initial_values(states):
    """Mamba's: step sizes between 0.001 and 0.1, A = -(1 .. d_state), D = 1; each path draws its own."""
    ssm = SS2D(64, d_state=states).ssm
    steps = F.softplus(ssm.dt_bias)
    assert 1e-3 * 0.99 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1 * 1.01
    assert torch.allclose(ssm.A_log.exp(), torch.arange(1, states + 1.0).expand_as(ssm.A_log))
    assert (ssm.D == 1).all() and ssm.dt_proj.abs().max() <= 4**-0.5
    assert not torch.equal(ssm.dt_bias[0], ssm.dt_bias[1])


WRONG = [
    (lambda: Mamba(8, bidirectional="v3"), "`bidirectional` is 'v3'"),
    (lambda: SS2D(8, gate="relu"), "`gate` is 'relu'"),
    (lambda: SS2D(8, out_norm="batch"), "`out_norm` is 'batch'"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _turned(x: torch.Tensor, height: int, width: int, position_range: int = 14) -> torch.Tensor:
    """Rope written out: a pair of channels turns by its place times its frequency; rows first, columns second."""
    out, half = x.double().clone(), x.shape[-1] // 2
    for token in range(height * width):
        places = (token // width / height * position_range, token % width / width * position_range)
        for part, place in enumerate(places):
            for i in range(half // 2):
                angle = place / 10000 ** (2 * i / half)
                a, b = part * half + 2 * i, part * half + 2 * i + 1
                out[..., token, a] = x[..., token, a] * math.cos(angle) - x[..., token, b] * math.sin(angle)
                out[..., token, b] = x[..., token, b] * math.cos(angle) + x[..., token, a] * math.sin(angle)
    return out


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (1, 1)], ids=str)
def test_rope(grid):
    x = torch.randn(2, math.prod(grid), 16)
    cos, sin = rotary_tables(16, grid, grid)
    assert oracle.error(rotate(x, cos, sin), _turned(x.double(), *grid)) <= 2e-6
    assert rotate(x.bfloat16(), cos, sin).dtype == torch.bfloat16
    assert rotate(x.transpose(0, 1).contiguous().transpose(0, 1), cos, sin).shape == x.shape


def test_rope_for_another_grid_resizes_the_trained_tables():
    """Bicubically, cosines and sines each; not computed anew."""
    cos, sin = rotary_tables(16, (14, 14), (14, 14))
    ours = rotary_tables(16, (10, 20), (14, 14))
    for small, large in zip((cos, sin), ours, strict=True):
        image = small.view(1, 14, 14, 16).permute(0, 3, 1, 2)
        expected = F.interpolate(image, (10, 20), mode="bicubic", align_corners=False)
        torch.testing.assert_close(large, expected[0].permute(1, 2, 0).flatten(0, 1))
