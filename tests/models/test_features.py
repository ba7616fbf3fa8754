"""Feature extraction: wrappers, intermediate features, pruning, as segmentation and detection frameworks use them."""

import copy
import math

import pytest
import torch
import torch.nn as nn
from small_models import (
    STAGED,
    assert_same_gradients,
    create,
    each_model,
    each_sequence_model,
    each_staged_model,
    gradients,
    images,
    random_sum,
)
from timm.models._features import FeatureGetterNet

from vision_ssm import use_backend

WRAPPERS = [(name, cls) for name in STAGED for cls in (None, "dict", "getter", "hook", "fx")]


def taps_of(model: nn.Module, x: torch.Tensor, **kwargs) -> list[torch.Tensor]:
    return model.forward_intermediates(x, intermediates_only=True, **kwargs)


def check_maps(model: nn.Module, maps: list[torch.Tensor], x: torch.Tensor) -> None:
    """Channels and reductions are what the wrapper says."""
    info = model.feature_info
    assert len(maps) == len(info.channels()) >= 1
    assert info.reduction() == sorted(info.reduction())
    for tap, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert tap.shape[:2] == (x.shape[0], channels)
        for size, image in zip(tap.shape[2:], x.shape[2:], strict=True):
            assert image / (2 * reduction) < size <= math.ceil(image / reduction) + 1


@pytest.mark.parametrize(("name", "wrapper"), WRAPPERS)
def test_staged_wrappers(name: str, wrapper: str | None) -> None:
    x, kwargs = images(2, 64, 96), {"feature_cls": wrapper} if wrapper else {}
    expected = taps_of(create(name), x)
    for indices in ((0, 1, 2, 3), (1, 3), (2,)):
        model = create(name, features_only=True, out_indices=indices, **kwargs)
        maps = model(x)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        check_maps(model, maps, x)
        for found, index in zip(maps, indices, strict=True):
            torch.testing.assert_close(found, expected[index])


@each_sequence_model
def test_sequence_wrapper(name: str) -> None:
    x, whole = images(), create(name)
    expected = taps_of(whole, x)
    for indices in (2, (0, 2), (1,)):
        model = create(name, features_only=True, out_indices=indices)
        assert isinstance(model, FeatureGetterNet)
        check_maps(model, model(x), x)
        absolute = range(len(whole.blocks))[-indices:] if isinstance(indices, int) else indices
        for found, index in zip(model(x), absolute, strict=True):
            torch.testing.assert_close(found, expected[index])


@each_model
def test_negative_out_indices(name: str) -> None:
    x, depth = images(), len(create(name).feature_info)
    for wrapper in {"getter", None if name in STAGED else "getter"}:
        kwargs = {"feature_cls": wrapper} if wrapper else {}
        last = create(name, features_only=True, out_indices=(-2, -1), **kwargs)
        same = create(name, features_only=True, out_indices=(depth - 2, depth - 1), **kwargs)
        assert last.feature_info.channels() == same.feature_info.channels()
        assert all(torch.equal(a, b) for a, b in zip(last(x), same(x), strict=True))


@each_model
@pytest.mark.parametrize("features_only", [False, True])
def test_gradient_checkpointing_changes_nothing(name: str, features_only: bool) -> None:
    x, results = images(), []
    for enable in (False, True):
        model = create(name, features_only=features_only).train()
        (model.model if isinstance(model, FeatureGetterNet) else model).set_grad_checkpointing(enable)
        for _ in range(2):  # a second step must not see anything that the first has left
            out = model(x)
            found = gradients(model, sum(map(random_sum, out if features_only else [out])))
        results.append((out, found))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert_same_gradients(results[1][1], results[0][1])


@each_model
def test_gradient_checkpointing_repeats_the_forward_pass(name: str) -> None:
    """Also where the backend is another one by then, and for each backward pass through the same graph."""
    model, x = create(name).train(), images()
    model.set_grad_checkpointing(True)
    with use_backend("chunked"):
        expected = [p.clone() for p in gradients(model, random_sum(model(x))).values()]
        loss = random_sum(model(x))
    for _ in range(2):
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert all(torch.equal(p.grad, like) for p, like in zip(model.parameters(), expected, strict=True))


@each_model
def test_intermediates(name: str) -> None:
    model, x = create(name), images()
    final, taps = model.forward_intermediates(x)
    depth = len(model.feature_info)
    assert torch.equal(final, model.forward_features(x))
    assert len(taps) == depth
    for indices in (1, depth, [0], [-1], [0, -1], list(range(depth))):
        absolute = list(range(depth))[-indices:] if isinstance(indices, int) else [i % depth for i in indices]
        for stop_early in (False, True):
            found = taps_of(model, x, indices=indices, stop_early=stop_early)
            assert len(found) == len(absolute)
            assert all(torch.equal(tap, taps[i]) for tap, i in zip(found, absolute, strict=True))
    for wrong in ([depth], [-depth - 1]):
        with pytest.raises((AssertionError, ValueError)):
            taps_of(model, x, indices=wrong)
    with pytest.raises(AssertionError, match="NCHW"):
        taps_of(model, x, output_fmt="NHCW")


@each_staged_model
def test_norm_follows_the_last_stage_only(name: str) -> None:
    model, x = create(name), images()
    taps = taps_of(model, x)
    for norm in (False, True):
        for index in range(len(taps) - 1):
            final, (tap,) = model.forward_intermediates(x, indices=[index], norm=norm, stop_early=True)
            assert torch.equal(tap, taps[index])
            assert torch.equal(final, tap)  # nothing ran behind it
    final, normed = model.forward_intermediates(x, norm=True)
    assert torch.equal(normed[-1], final)
    assert not torch.equal(normed[-1], taps[-1])


@each_sequence_model
def test_sequence_intermediates(name: str) -> None:
    model, x = create(name), images(2)
    height, width = model.grid_size
    final, taps = model.forward_intermediates(x, output_fmt="NLC", norm=True)
    pairs = taps_of(model, x, output_fmt="NLC", norm=True, return_prefix_tokens=True)
    for tap, as_map, (patches, tokens) in zip(taps, taps_of(model, x, norm=True), pairs, strict=True):
        assert tap.shape == (2, height * width, model.num_features)
        assert torch.equal(patches, tap)
        assert tokens.shape == (2, model.num_prefix_tokens, model.num_features)
        assert torch.equal(as_map, tap.transpose(1, 2).reshape(2, -1, height, width))
    assert final.shape[1] == height * width + model.num_prefix_tokens
    middle = height * width // 2  # where both small models and published ones have the class token
    patches = torch.cat([final[:, :middle], final[:, middle + model.num_prefix_tokens :]], 1)
    torch.testing.assert_close(taps[-1], patches)
    assert all(torch.equal(a, b) for a, b in zip(model.get_intermediate_layers(x, n=2), taps[-2:], strict=True))


@each_model
def test_pruning(name: str) -> None:
    model, x = create(name, drop_rate=0.5), images()
    depth = len(model.feature_info)
    taps, expected = taps_of(model, x), model(x)
    whole = copy.deepcopy(model)
    assert whole.prune_intermediate_layers([-1], prune_head=False) == [depth - 1]
    assert torch.equal(whole(x), expected)
    for index in range(depth):
        for prune_norm in (False, True):
            pruned = copy.deepcopy(model)
            assert pruned.prune_intermediate_layers([index - depth], prune_norm=prune_norm) == [index]
            assert torch.equal(taps_of(pruned, x, indices=[index])[0], taps[index])
            assert torch.equal(pruned(x), pruned(x))  # a new head module must be in evaluation mode
            # What a distributed backbone trains with: its loss sees the tap (normed if the norm is kept) only.
            found = gradients(pruned.train(), taps_of(pruned, x, indices=[index], norm=not prune_norm)[0].sum())
            assert not [key for key, gradient in found.items() if gradient is None]
            pruned.reset_classifier(7, "avg")
            width = model.feature_info[index]["num_chs"]
            assert pruned.num_features == pruned.head_hidden_size == width
            assert pruned.forward_head(pruned.forward_features(x), pre_logits=True).shape == (2, width)
            assert pruned(x).shape == (2, 7)


@each_model
def test_scripted_features(name: str) -> None:
    x = images()
    for indices in ((0, 1, 2), (0,)):
        getter = create(name, features_only=True, feature_cls="getter", out_indices=indices)
        torch.testing.assert_close(torch.jit.script(getter)(x), getter(x))
    whole = FeatureGetterNet(create(name), out_indices=[0, 1, 2], prune=False).eval()
    torch.testing.assert_close(torch.jit.script(whole)(x), whole(x))
