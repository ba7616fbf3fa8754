"""Vivim: temporal layer, frames, sizes, conversion."""

import parity
import pytest
import timm
import torch

import vision_ssm
from vision_ssm.checkpoints import mamba_parameters, rename, stack_paths
from vision_ssm.medical import vivim


def test_golden_temporal_block():
    entry = parity.load("vivim_mambalayer")
    block = vivim.TemporalBlock(64).eval()
    published = {f"encoder.stages.0.0.0.{k}": torch.from_numpy(v) for k, v in parity.make_state_dict(entry).items()}
    renamed = stack_paths(rename(published, vivim._NAMES), mamba_parameters(("", "_b", "_s")))
    block.load_state_dict({name.removeprefix("stages.0.temporal.0."): value for name, value in renamed.items()})
    (shape,) = entry["inputs"]
    x = torch.from_numpy(parity.make_input(shape))
    with torch.inference_mode():
        y = block(x.flatten(2).transpose(1, 2), *shape[2:]).transpose(1, 2).unflatten(2, shape[2:])
    (expected,) = entry["outputs"].values()
    assert parity.compare(y.numpy(), expected) <= entry["tolerance"]


@pytest.mark.parametrize("frames", [5, 10])
def test_every_frame_has_its_logits(frames):
    torch.manual_seed(0)
    model = timm.create_model("vivim_test", in_chans=2, num_classes=3, edge=True)
    logits, edges = model(torch.randn(2, frames, 2, 21, 34))
    assert logits.shape == (2, frames, 3, 21, 34) and edges.shape == (2, frames, 1, 21, 34)
    (logits.square().sum() + edges.square().sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_clips_of_a_batch_do_not_mix_and_frames_of_a_clip_do():
    torch.manual_seed(0)
    model = timm.create_model("vivim_test").eval().double()  # a fresh network mixes frames by 1e-7 of their values
    clips = torch.randn(2, 5, 3, 16, 16, dtype=torch.float64)
    with torch.inference_mode():
        y = model(clips)
        torch.testing.assert_close(model(clips[1:]), y[1:], rtol=1e-12, atol=1e-13)
        clips[0, 4] = 0
        changed = (model(clips) - y).abs().amax(dim=(2, 3, 4))
    assert (changed[0] > 1e-9).all() and (changed[1] < 1e-13).all()


def test_chunks_are_a_choice():
    model = timm.create_model("vivim_test", chunks=3).eval()
    assert model(torch.randn(1, 3, 3, 16, 16)).shape == (1, 3, 1, 16, 16)


def test_sizes():
    model = timm.create_model("vivim_test")
    with pytest.raises(ValueError, match="a clip of 4 frames: expected a multiple of 5"):
        model(torch.randn(1, 4, 3, 16, 16))
    with pytest.raises(ValueError, match=r"expected \(batch, frames, 3, height, width\)"):
        model(torch.randn(5, 3, 16, 16))


def test_conversion_leaves_our_own_names_and_drops_what_has_no_effect():
    model = timm.create_model("vivim", device="meta")
    own = model.state_dict()
    assert vivim.checkpoint_filter_fn(own, model) == own
    published = {k: torch.empty(v, device="meta") for k, v in parity.load("vivim_segformer_b3")["state_dict"].items()}
    converted = vivim.checkpoint_filter_fn(published, model)
    stage_norms, classifier = 2 * (64 + 128 + 320 + 512), 150 * (768 + 1)
    dropped = sum(map(torch.numel, published.values())) - sum(map(torch.numel, converted.values()))
    assert dropped == stage_norms + classifier


def test_a_checkpoint_without_edges_does_not_fit_a_network_with_them():
    with pytest.raises(vision_ssm.CheckpointError, match="missing: edge_head"):
        state_dict = timm.create_model("vivim_test").state_dict()
        vision_ssm.load_checkpoint(timm.create_model("vivim_test", edge=True), state_dict)
