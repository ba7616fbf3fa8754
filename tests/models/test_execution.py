"""Models under other precisions, optimisers, compilers and thread counts."""

import copy
import io
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn as nn
from small_models import assert_same_gradients, create, each_model, error, images, step
from timm.layers import LayerNorm2d, set_exportable
from timm.models._features_fx import create_feature_extractor
from timm.optim import create_optimizer_v2


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Precision


@each_model
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_low_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = create(name)
    expected = model(images())
    model(images())  # caches, if there are any, are of the first dtype now
    model = model.to(dtype)
    out, grads = step(model, images().to(dtype))
    assert out.dtype == dtype
    assert error(out, expected) < tolerance
    assert all(torch.isfinite(g).all() and g.dtype == dtype for g in grads.values())


@each_model
def test_autocast(name: str) -> None:
    model = create(name).train()
    expected, expected_grads = step(model, images())
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = step(model, images())
    assert out.dtype == torch.bfloat16
    assert error(out, expected) < 0.03
    assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in grads.values())
    found, wanted = (torch.cat([g.flatten() for g in each.values()]) for each in (grads, expected_grads))
    assert error(found, wanted) < 0.03


# Optimiser


@each_model
def test_weight_decay_and_layer_decay(name: str) -> None:
    model = create(name)
    names = [key for key, _ in model.named_parameters()]
    states = {key for key in names if key.rpartition(".")[2] in ("A_log", "D")}
    assert states
    for copied in (model, copy.deepcopy(model), timm.create_model(name, device="meta").to_empty(device="cpu")):
        assert states <= copied.no_weight_decay()
        groups = create_optimizer_v2(copied, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5).param_groups
        keys = {id(p): key for key, p in copied.named_parameters()}
        scale = {keys[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
        decay = {keys[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
        assert sorted(scale) == sorted(names)
        assert sum(len(group["params"]) for group in groups) == len(names)
        excluded = states | {key for key, p in copied.named_parameters() if p.ndim < 2}
        excluded |= {key for key in names if key.endswith(("bias", "pos_embed", "cls_token"))}
        assert {key for key in names if not decay[key]} == excluded
        # The stem learns slowest, each block faster than the one before, the head as given.
        first, head = (copied.pretrained_cfg[part] for part in ("first_conv", "classifier"))
        assert scale[f"{head}.weight"] == 1
        blocks = [scale[key] for key in names if key.endswith("A_log")]
        assert blocks == sorted(set(blocks))
        assert scale[f"{first}.weight"] < blocks[0] and blocks[-1] < 1


# Graphs


@each_model
def test_compile(name: str) -> None:
    model = create(name).train()
    expected = step(model, images())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out, grads = step(compiled, images())
    torch.testing.assert_close(out, expected[0])
    assert_same_gradients({key.removeprefix("_orig_mod."): g for key, g in grads.items()}, expected[1])


@each_model
def test_export(name: str) -> None:
    model = create(name)
    with set_exportable(True):
        program = torch.export.export(model, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 2, 5):
        torch.testing.assert_close(program.module()(images(batch)), model(images(batch)))


@each_model
def test_torchscript(name: str) -> None:
    model, buffer = create(name, scriptable=True), io.BytesIO()
    scripted = torch.jit.script(model)
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    for candidate in (scripted, torch.jit.load(buffer)):
        for x in (images(), images(3)):
            torch.testing.assert_close(candidate(x), create(name)(x))


@each_model
def test_fx(name: str) -> None:
    model = create(name).train()
    expected = step(model, images())
    graph = create_feature_extractor(model, {"head": "logits"}).train()
    out, grads = step(Logits(graph), images())
    torch.testing.assert_close(out, expected[0])
    assert_same_gradients({key.removeprefix("graph."): g for key, g in grads.items()}, expected[1])


class Logits(nn.Module):
    """The one output of a traced model."""

    def __init__(self, graph: nn.Module):
        super().__init__()
        self.graph = graph

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.graph(x)["logits"]


# Reproducibility


@each_model
@pytest.mark.usefixtures("two_threads")
def test_two_runs_are_bitwise_equal(name: str) -> None:
    model = create(name).train()
    first, second = step(model, images(4)), step(model, images(4))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@each_model
@pytest.mark.usefixtures("two_threads")
def test_thread_counts_are_bitwise_equal(name: str) -> None:
    model = create(name).train()
    # PyTorch adds up the gradients of these layers' own parameters in an order that depends on the threads.
    summed = [
        key for key, module in model.named_modules() if isinstance(module, nn.LayerNorm | LayerNorm2d | nn.Conv2d)
    ]
    out, grads = step(model, images(4))
    torch.set_num_threads(1)
    out_one, grads_one = step(model, images(4))
    assert torch.equal(out_one, out)
    assert_same_gradients(grads_one, grads)
    for key, gradient in grads.items():
        assert key.rpartition(".")[0] in summed or torch.equal(grads_one[key], gradient), key
