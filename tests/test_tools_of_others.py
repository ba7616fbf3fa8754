"""What other people's tools do to any network: hooks, adapters, pruning, quantisation, subclasses, traces, dtypes."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
from registered import NAMES, create, each_model, inputs, loss, outputs
from torch.nn.utils import prune


def _linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


with_linear_layers = pytest.mark.parametrize("name", [name for name in NAMES if _linear_layers(create(name))])


@each_model
def test_every_layer_is_called(name: str) -> None:
    """Every module that has parameters, itself or below; a list of modules has no call."""
    model, called = create(name), set()
    for key, module in model.named_modules():
        module.register_forward_hook(lambda *_, key=key: called.add(key))
    with torch.no_grad():
        model(inputs(model, 1))
    owners = {
        key
        for key, module in model.named_modules()
        if not isinstance(module, nn.ModuleList) and any(True for _ in module.parameters())
    }
    assert owners - called == set()


class _Adapter(nn.Module):
    """A layer and a low rank beside it, as LoRA (arXiv 2106.09685); `weight` and `bias` are the layer's."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer = layer
        self.a = nn.Linear(layer.in_features, 2, bias=False)
        self.b = nn.Linear(2, layer.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.b(self.a(x))


@with_linear_layers
def test_adapters_act_and_learn(name: str) -> None:
    model = create(name)
    x, layers = inputs(model), _linear_layers(model)
    with torch.no_grad():
        before = outputs(model(x))[0]
    for key in layers:
        model.set_submodule(key, _Adapter(model.get_submodule(key)))
    after = model(x)
    loss(after).backward()
    assert not torch.equal(outputs(after)[0], before)
    for key in layers:
        gradient = model.get_submodule(key).b.weight.grad
        assert gradient is not None, key
        assert gradient.any() or key.startswith("gates."), key  # a ReLU of one unit, which may be closed


@each_model
def test_pruned_layers_train(name: str) -> None:
    """A pruned weight is made anew by a hook of its owner's call: a second step finds no graph of the first."""
    model = create(name).train()
    x = inputs(model)
    layers = [module for module in model.modules() if isinstance(getattr(module, "weight", None), nn.Parameter)]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
    assert all(layer.weight_orig.grad is not None for layer in layers)


@pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="PyTorch was built without quantised layers")
@with_linear_layers
def test_quantised_linear_layers(name: str) -> None:
    model = create(name)
    x = inputs(model, 1)
    quantised, called = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8), set()
    for key in _linear_layers(model):
        quantised.get_submodule(key).register_forward_hook(lambda *_, key=key: called.add(key))
    with torch.no_grad():
        found, expected = outputs(quantised(x))[0], outputs(model(x))[0]
    assert _linear_layers(quantised) == [] and sorted(called) == sorted(_linear_layers(model))
    assert torch.isfinite(found).all() and not torch.equal(found, expected)


@pytest.mark.parametrize("name", ["vim_test", "local_vmamba_test", "umamba_2d_test", "nnmamba_seg_test"])
def test_functional_call_takes_other_weights(name: str) -> None:
    """Weights of the call, also those of fused operators, not those that the modules hold."""
    model, other = create(name), create(name, 1)
    x = inputs(model, 1)
    with torch.no_grad():
        found = torch.func.functional_call(model, dict(other.named_parameters()), x)
        assert torch.equal(outputs(found)[0], outputs(other(x))[0])
        copied = pickle.loads(pickle.dumps(copy.deepcopy(other)))
        assert torch.equal(outputs(copied(x))[0], outputs(other(x))[0])


@each_model
@pytest.mark.parametrize("training", [False, True])
def test_empty_batch(name: str, training: bool) -> None:
    model = create(name).train(training)
    x = inputs(model)
    found = model(x[:0])
    loss(found).backward()
    with torch.no_grad():
        expected = outputs(model(x))
    assert [y.shape for y in outputs(found)] == [(0, *y.shape[1:]) for y in expected]
    if hasattr(model, "forward_intermediates"):
        (last, maps), (some, more) = (model.forward_intermediates(each) for each in (x[:0], x))
        assert [y.shape for y in (last, *maps)] == [(0, *y.shape[1:]) for y in (some, *more)]


@each_model
def test_meta_tensors_of_monai(name: str) -> None:
    data = pytest.importorskip("monai.data")
    model = create(name)
    x = inputs(model, 1)
    found, expected = outputs(model(data.MetaTensor(x))), outputs(model(x))
    for y, wanted in zip(found, expected, strict=True):
        assert torch.equal(torch.as_tensor(y), wanted)
    loss(expected).backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    model.zero_grad()
    loss(found).backward()
    for key, parameter in model.named_parameters():
        assert torch.equal(torch.as_tensor(parameter.grad), gradients[key]), key


# As many pixels in another shape.
RESHAPED = {
    "vim_test": (32, 128),
    "local_vim_test": (32, 128),
    "local_vmamba_test": (32, 128),
    "umamba_2d_test": (24, 16),
    "swin_unet_weak_test": (32, 128),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", RESHAPED)
def test_trace_is_for_one_size(name: str) -> None:
    model = create(name)
    x = inputs(model)
    other = x[:1].reshape(1, x.shape[1], *RESHAPED[name])
    with torch.no_grad():
        trace = torch.jit.trace(model, x[:1], check_trace=False)
        assert torch.equal(trace(x[1:]), model(x[1:]))
        with pytest.raises(RuntimeError, match="trace the model at that size"):
            trace(other)


@each_model
def test_default_dtype_decides_nothing(name: str) -> None:
    """As Lightning's `bf16-true`: made and run while the default dtype is bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = create(name)
        x = inputs(model, 1).bfloat16()
        found = model(x)
        loss(found).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    same = create(name, 1, dtype=torch.bfloat16)
    same.load_state_dict(model.state_dict())
    expected = same(x)
    loss(expected).backward()
    for y, wanted in zip(outputs(found), outputs(expected), strict=True):
        assert y.dtype == torch.bfloat16 and torch.isfinite(y).all() and torch.equal(y, wanted)
    for (key, p), wanted in zip(model.named_parameters(), same.parameters(), strict=True):
        assert p.dtype == torch.bfloat16, key
        # On CPUs, gradients of bfloat16 convolutions of a few voxels go wrong in PyTorch.
        assert torch.equal(p.grad, wanted.grad) or x.dim() == 5, key
