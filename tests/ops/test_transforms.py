"""Function transforms and derivatives beyond the first, of every operator on every backend, against the definition."""

import contextlib

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from ops import oracle
from ops.conv_cases import arguments as conv_arguments
from ops.scan_cases import arguments, random_tables

from vision_ssm.ops import (
    available_backends,
    causal_conv1d,
    scan_tokens,
    selective_scan,
    selective_scan_nd,
    use_backend,
)

BACKENDS = available_backends()
LIMIT = 2e-5  # of second derivatives, relative


def _scan_case():
    tables, out_tokens = random_tables("any", 2, 5, seed=2)
    tensors, options = arguments(
        tokens=5, channels=4, d_state=2, rank=2, groups=2, tables=tables, out_tokens=out_tokens
    )
    expected = lambda **kwargs: oracle.scan(**kwargs)[0]  # noqa: E731
    return scan_tokens, expected, tensors, options


def _mamba_case():
    """mamba_ssm's form: (batch, channels, length)."""
    tensors, _ = arguments(tokens=6, channels=3, d_state=2, paths=1)

    def expected(u, delta, A, B, C, D, z, delta_bias):
        u, delta, z = (x.transpose(1, 2).unsqueeze(1) for x in (u, delta, z))
        B, C = (x.transpose(1, 2)[:, None, :, None] for x in (B, C))
        y, _ = oracle.scan(u, delta, A[None], B, C, D[None], z, delta_bias[None])
        return y.squeeze(1).transpose(1, 2)

    sequences = {name: tensors[name].squeeze(1).transpose(1, 2) for name in ("u", "dt", "z")}
    rows = {name: tensors[name][:, 0, :, 0].transpose(1, 2) for name in "BC"}
    ours = dict(u=sequences["u"], delta=sequences["dt"], A=tensors["A"][0], **rows, D=tensors["D"][0])
    ours |= dict(z=sequences["z"], delta_bias=tensors["dt_bias"][0])
    return (lambda **kwargs: selective_scan(**kwargs, delta_softplus=True)), expected, ours, {}


def _grid_case():
    tensors, _ = arguments(tokens=6, channels=3, d_state=2)

    def expected(x, dt, A, B, C):
        flat = x.flatten(1, 2).unsqueeze(1), dt.flatten(2, 3), A
        y, _ = oracle.scan(*flat, *(row.flatten(2, 3).unsqueeze(3) for row in (B, C)))
        return y.view(2, 2, 3, 3)

    x, dt = tensors["u"].view(2, 2, 3, 3), tensors["dt"].view(2, 2, 2, 3, 3)
    B, C = (tensors[name].view(2, 2, 2, 3, 2) for name in "BC")
    return selective_scan_nd, expected, dict(x=x, dt=dt, A=tensors["A"], B=B, C=C), {}


def _conv_case():
    tables, _ = random_tables("any", 2, 5, seed=3)
    tensors, options = conv_arguments(
        tokens=5, channels=4, width=3, tables=tables[0].contiguous(), mirrored=[True, False]
    )
    return causal_conv1d, oracle.conv, tensors, options


CASES = dict(scan=_scan_case, mamba=_mamba_case, grid=_grid_case, conv=_conv_case)


@pytest.fixture(params=CASES)
def case(request):
    """(ours, the definition, example values): functions of all tensors, in one order."""
    function, expected, tensors, options = CASES[request.param]()
    names, values = list(tensors), tuple(tensors.values())

    def by_position(f):
        return lambda *given: f(**dict(zip(names, given, strict=True)), **options)

    return by_position(function), by_position(expected), values


def _close(ours, expected) -> None:
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (ours, expected)), strict=True):
        assert oracle.error(a, b) <= LIMIT


def _directions(values):
    return tuple(torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(values))


def _loss(f):
    return lambda *values: f(*values).square().sum()


def test_grad(case):
    ours, expected, values = case
    everything = tuple(range(len(values)))
    _close(torch.func.grad(_loss(ours), everything)(*values), torch.func.grad(_loss(expected), everything)(*values))


def test_forward_mode(case):
    ours, expected, values = case
    tangents = _directions(values)
    _close(torch.func.jvp(ours, values, tangents), torch.func.jvp(expected, values, tangents))
    found = []
    for f in (ours, expected):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, v) for x, v in zip(values, tangents, strict=True)]
            found.append(forward_ad.unpack_dual(f(*duals)).tangent)
    _close(*found)


def test_jacobians(case):
    ours, expected, values = case
    want = torch.func.jacrev(lambda x: expected(x, *values[1:]))(values[0])
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        _close(transform(lambda x: ours(x, *values[1:]))(values[0]), want)


def test_hessian(case):
    ours, expected, values = case
    found = [
        torch.func.hessian(_loss(lambda x, f=f: f(values[0], x, *values[2:])))(values[1]) for f in (ours, expected)
    ]
    _close(*found)


def test_gradients_of_single_samples(case):
    ours, _, values = case
    batched = [i for i, x in enumerate(values) if x.dim() > 2]
    samples = [torch.stack([x, x.flip(0), 2 * x]) if i in batched else x for i, x in enumerate(values)]
    gradient = torch.func.grad(_loss(ours), tuple(range(len(values))))
    found = torch.vmap(gradient, tuple(0 if i in batched else None for i in range(len(values))))(*samples)
    for s in range(3):
        leaves = [(x[s] if i in batched else x).clone().requires_grad_() for i, x in enumerate(samples)]
        expected = torch.autograd.grad(_loss(ours)(*leaves), leaves)
        _close([g[s] for g in found], expected)


def _second(f, values):
    """Gradients of a function of the gradients, by two backward passes."""
    leaves = [x.clone().requires_grad_() for x in values]
    first = torch.autograd.grad(f(*leaves).square().sum(), leaves, create_graph=True)
    penalty = sum(g.double().square().sum() * (i + 1) for i, g in enumerate(first))
    return torch.autograd.grad(penalty, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(case, backend):
    ours, expected, values = case
    with use_backend(backend):
        _close(_second(ours, values), _second(expected, values))


def test_third_derivatives(case):
    ours, expected, values = case

    def third(f):
        x = values[0].clone().requires_grad_()
        y = f(x, *values[1:]).square().sum()
        for _ in range(3):
            (x.grad,) = torch.autograd.grad(y, x, create_graph=True)
            y = x.grad.square().sum()
        return x.grad

    _close(third(ours), third(expected))


@pytest.mark.parametrize("decompose", [False, True])
def test_batched_gradients_of_one_forward_pass(case, decompose):
    """PyTorch's first vmap, which knows too little for the operators' own gradients."""
    ours, expected, values = case
    x = values[0].clone().requires_grad_()
    with use_backend("chunked", decompose=True) if decompose else contextlib.nullcontext():
        y = ours(x, *values[1:])
    given = torch.randn((3, *y.shape), generator=torch.Generator().manual_seed(0))
    if not decompose:
        with pytest.raises(RuntimeError, match="decompose"):
            torch.autograd.grad(y, x, given, is_grads_batched=True)
        return
    want = expected(x, *values[1:])
    _close(
        torch.autograd.grad(y, x, given, is_grads_batched=True)[0],
        torch.stack([torch.autograd.grad(want, x, g.double(), retain_graph=True)[0] for g in given]),
    )


def test_an_input_that_depends_on_another(case):
    """What flows through other inputs is counted once."""
    ours, expected, values = case

    def f(function):
        return lambda x: function(x, (x.sum() + 1).tanh() * values[1], *values[2:])

    _close(_second(f(ours), values[:1]), _second(f(expected), values[:1]))


def test_compiled_transform():
    tensors, options = conv_arguments(tokens=5, channels=4)
    torch._dynamo.reset()
    gradient = torch.func.grad(lambda x: causal_conv1d(**tensors | dict(x=x), **options).square().sum())
    ours = torch.compile(gradient, backend="aot_eager", fullgraph=True)(tensors["x"])
    expected = torch.func.grad(lambda x: oracle.conv(**tensors | dict(x=x), **options).square().sum())(tensors["x"])
    _close(ours, expected)


def test_a_state_of_zero_passes_derivatives_on():
    """Inputs that are zero at first, as those of padded images: the states that they leave are zero, the derivatives
    by them are not."""
    tensors, options = arguments(tokens=40, channels=3, d_state=2, paths=1, gate=False)
    tensors["u"][:, :, :20] = 0
    found = []
    for f in (lambda **kwargs: oracle.scan(**kwargs)[0], scan_tokens):
        found.append(torch.func.grad(lambda u, f=f: f(**tensors | dict(u=u), **options).square().sum())(tensors["u"]))
    _close(found[1], found[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_tangents_never_vanish_in_a_raw_operator(backend):
    tensors, options = arguments(tokens=5, channels=4)
    order = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_weight")
    x, weight = torch.randn(1, 1, 5, 4), torch.randn(1, 4, 3)
    with use_backend(backend), forward_ad.dual_level():
        tensors["B"] = forward_ad.make_dual(tensors["B"], torch.ones_like(tensors["B"]))
        with pytest.raises(RuntimeError, match="decompose"):
            torch.ops.vision_ssm.selective_scan(*map(tensors.get, order), *options.values(), False)
        dual = forward_ad.make_dual(weight, torch.ones_like(weight))
        with pytest.raises(RuntimeError, match="decompose"):
            torch.ops.vision_ssm.causal_conv1d(x, dual, None, None, [0], True)
