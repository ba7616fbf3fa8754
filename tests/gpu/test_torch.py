"""The Triton kernels inside PyTorch: operator contracts, compilers, CUDA graphs, checkpointing, autocast."""

import pytest
import torch
import torch.utils.checkpoint
from gpu.on_device import FLOAT32_GPU, check, compare, moved
from ops import oracle
from ops.scan_cases import arguments, operator, random_tables, results

from vision_ssm.layers import SS2D
from vision_ssm.ops import scan_tokens

FORWARD, BACKWARD = torch.ops.vision_ssm.selective_scan, torch.ops.vision_ssm.selective_scan_backward
ORDER = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_weight")


def _case(full: bool, device: torch.device, **kwargs) -> tuple[dict, dict]:
    """Arguments with every option, or with none."""
    small = dict(batch=1, tokens=70 if device.type == "cuda" else 4, channels=4, d_state=2) | kwargs
    if full:
        tables, out_tokens = random_tables("any", 2, small["tokens"])
        tensors, options = arguments(rank=1, groups=2, tables=tables, out_tokens=out_tokens, **small)
    else:
        tensors, options = arguments(skip=False, gate=False, bias=False, softplus=False, merge=False, **small)
    return moved(tensors, device), moved(options, device)


def _compiler(device: torch.device) -> str:
    return "inductor" if device.type == "cuda" else "aot_eager"


@pytest.mark.parametrize(("full", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_opcheck(full, dtype, device):
    tensors, options = _case(full, device)
    inputs = [tensors[name].to(dtype) if name in tensors else None for name in ORDER]
    leaves = [x if x is None else x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(FORWARD, (*leaves, *options.values(), True))
    y, last_state, states, ungated = FORWARD(*inputs, *options.values(), True)
    tables, _, softplus, merge = options.values()
    for d_last_state in (None, last_state):
        args = (y, d_last_state, *inputs, tables, states, ungated, softplus, merge)
        torch.library.opcheck(BACKWARD, args, test_utils=("test_schema", "test_faketensor"))


def _loss(*tensors, options):
    return scan_tokens(**dict(zip(ORDER, tensors, strict=False)), **options).square().mean()


@pytest.mark.parametrize(("full", "d_state"), [(True, 2), (False, 1), (False, 18)])
def test_compile(full, d_state, device):
    """The same kernels run, so the same bits come out of the scan; the rest is fused."""
    tensors, options = _case(full, device, d_state=d_state)
    inputs = [tensors.get(name) for name in ORDER]
    leaves = [x.requires_grad_() for x in inputs if x is not None]
    expected = _loss(*inputs, options=options)
    torch._dynamo.reset()
    compiled = torch.compile(_loss, fullgraph=True, backend=_compiler(device))
    for _ in range(2):
        loss = compiled(*inputs, options=options)
        torch.testing.assert_close(loss, expected)
        ours = torch.autograd.grad(loss, leaves)
        for a, b in zip(ours, torch.autograd.grad(expected, leaves, retain_graph=True), strict=True):
            assert oracle.error(a, b) <= 1e-5


@pytest.fixture
def layer(device):
    """A mixer of VMamba, and an image."""
    torch.manual_seed(0)
    size = 14 if device.type == "cuda" else 2
    return SS2D(16, d_state=1, expand=2.0).to(device), torch.randn(2, size, size, 16, device=device)


def _step(function, module, x) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_layer(mode, layer, device):
    """With tables inside the graph; with "reduce-overhead" in CUDA graphs, which a third call replays."""
    module, x = layer
    torch._dynamo.reset()
    how = dict(mode=mode) if device.type == "cuda" else dict(backend="aot_eager")
    compiled = torch.compile(module, fullgraph=True, **how)
    for seed in range(4):
        image = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(device)
        torch.compiler.cudagraph_mark_step_begin()
        ours = [g.clone() for g in _step(compiled, module, image)]
        for a, b in zip(ours, _step(module, module, image), strict=True):
            assert oracle.error(a, b) <= 1e-4


def test_cuda_graph(cuda):
    """Forward and backward, captured once and replayed with other inputs."""
    tensors, options = _case(True, cuda, batch=2)
    static = {name: x.clone().requires_grad_() for name, x in tensors.items()}

    def step():
        y = scan_tokens(**static, **options)
        return y, *torch.autograd.grad(y.square().sum(), list(static.values()))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and looks the tables up
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        others, _ = arguments(
            rank=1, groups=2, tables=options["tables"].cpu(), out_tokens=options["out_tokens"], batch=2, tokens=70,
            channels=4, d_state=2, seed=seed,
        )  # fmt: skip
        with torch.no_grad():
            for name, x in others.items():
                static[name].copy_(x)
        graph.replay()
        ours = [x.clone() for x in captured]
        assert all(torch.equal(a, b) for a, b in zip(ours, step(), strict=True))


def test_cuda_graph_with_tables_never_seen(cuda):
    """Capturing waits for no answer about them: the kernels expect anything, as those that ran before did."""
    tensors, options = _case(True, cuda)
    fresh = options | dict(tables=options["tables"].clone())
    with torch.no_grad():
        expected = scan_tokens(**tensors, **options)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = scan_tokens(**tensors, **fresh)
        graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant, layer):
    module, x = layer

    def step(function):
        module.zero_grad()
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        y.square().sum().backward()
        return [y.detach(), leaf.grad, *(p.grad.clone() for p in module.parameters())]

    again = step(lambda x: torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant))
    for a, b in zip(again, step(module), strict=True):
        assert torch.equal(a, b) or oracle.error(a, b) <= 1e-6  # convolutions may not repeat their bits


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(low, dtype, device):
    """The output has the dtype of `u` and the accumulation stays in float32, also in the backward pass."""
    tensors, options = _case(True, device)
    tensors["u"] = tensors["u"].to(dtype)
    expected = results(operator, tensors, options)
    with torch.autocast(device.type, low):
        ours = results(operator, tensors, options)
    for name in expected:
        assert ours[name].dtype == expected[name].dtype
        assert torch.equal(ours[name], expected[name]), name


@pytest.mark.parametrize(("low", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_of_a_layer(low, tolerance, layer, device):
    module, x = layer
    expected = _step(module, module, x)
    with torch.autocast(device.type, low):
        ours = _step(module, module, x)
    for a, b in zip(ours, expected, strict=True):
        assert a.isfinite().all()
        assert ((a.float() - b).norm() / b.norm()).item() <= tolerance


def test_inference_mode(device):
    """Also with tables that were made inside."""
    tensors, options = _case(True, device)
    expected = scan_tokens(**tensors, **options)
    with torch.inference_mode():
        options["tables"] = options["tables"].clone()
        assert torch.equal(scan_tokens(**tensors, **options), expected)


def test_tables_may_be_changed_in_place(device):
    tables, _ = random_tables("permuted", 2, 7)
    tensors, options = arguments(batch=1, tokens=7, channels=3, d_state=1)
    on_device, there = moved(tensors, device), tables.to(device)
    scan_tokens(**on_device, **options | dict(tables=there))
    there[1, :, 3:6] = -1
    tables[1, :, 3:6] = -1
    ours = results(operator, on_device, options | dict(tables=there))
    compare(ours, results(oracle.scan, tensors, options | dict(tables=tables)), FLOAT32_GPU)


def test_gradients_of_any_strides(device):
    tensors, options = arguments(batch=1, tokens=9, channels=6, d_state=2, merge=False)
    leaves = {name: x.requires_grad_() for name, x in moved(tensors, device).items()}
    expected = {name: x.requires_grad_() for name, x in tensors.items()}
    wanted, _ = oracle.scan(**expected, **options)
    y = scan_tokens(**leaves, **options)
    for dy in (torch.ones(1, 1, 1, 1).expand(y.shape), torch.randn(1, 6, 9, 2).permute(0, 3, 2, 1)):
        ours = torch.autograd.grad(y, list(leaves.values()), dy.to(device), retain_graph=True)
        theirs = torch.autograd.grad(wanted, list(expected.values()), dy.double(), retain_graph=True)
        compare(dict(zip(leaves, ours, strict=True)), dict(zip(leaves, theirs, strict=True)), FLOAT32_GPU)


def test_many_threads(device):
    """Two threads, as `DataParallel` has them, each with the backend of the process."""
    from concurrent.futures import ThreadPoolExecutor

    if device.type == "cpu":
        pytest.skip("the interpreter takes one launch at a time")
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(check, device, *arguments(d_state=1, seed=seed)) for seed in range(6)]:
            future.result()
