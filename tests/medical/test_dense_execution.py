"""Networks for dense prediction under other precisions, in graphs, and saved."""

import importlib
from pathlib import Path

import pytest
import timm
import torch
from small_networks import create, each_network, error, logits, smallest_sides, step, volumes
from timm.models._hub import save_for_hf
from torch.utils.flop_counter import FlopCounterMode

import vision_ssm

# Precision


@each_network
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_autocast_trains_without_nan(name: str, dtype: torch.dtype, tolerance: float) -> None:
    # Convolutions in float16 take minutes on CPUs, those in bfloat16 need some voxels.
    model, x = create(name), volumes(name, sides=smallest_sides(name) if dtype == torch.float16 else None)
    expected = logits(model(x))[0]
    with torch.autocast("cpu", dtype):
        found = logits(model(x))[0]
        y, gradients = step(model.train(), x)
    assert torch.isfinite(y).all() and all(torch.isfinite(g).all() for g in gradients.values())
    assert error(found, expected) < tolerance


# Graphs


@each_network
def test_compile(name: str) -> None:
    model, x = create(name), volumes(name, sides=smallest_sides(name))
    expected = step(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, gradients = step(compiled, x)
    assert error(y, expected[0]) < 2e-4
    largest = max(gradient.norm() for gradient in expected[1].values())
    for key, found in gradients.items():  # those of a bias before a norm are noise around zero
        wanted = expected[1][key.removeprefix("_orig_mod.")]
        assert (found - wanted).norm() <= 1e-3 * wanted.norm() + 1e-4 * largest, key


@each_network
def test_export(name: str) -> None:
    model, sides = create(name), smallest_sides(name)
    x = volumes(name, sides=sides)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 3):
        inputs = volumes(name, batch, sides=sides)
        assert error(logits(program.module()(inputs))[0], logits(model(inputs))[0]) < 2e-4


@each_network
def test_flops_grow_with_the_input(name: str) -> None:
    """Counted on every operator, the scan's included; twice the batch is twice the work."""
    model = create(name)

    def count(batch: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(volumes(name, batch))
        counts = counter.get_flop_counts()["Global"]
        has_scan = any("selective_scan" in str(operator) for operator in counts)
        assert has_scan != name.startswith(("unet_semi", "swin_unet"))  # the partners have none
        return sum(counts.values())

    assert count(2) == 2 * count(1) > 0


# Saving and loading


@each_network
def test_hub_round_trip(name: str, tmp_path: Path) -> None:
    source, x = create(name, in_chans=4, num_classes=3), volumes(name, 1, 4)
    save_for_hf(source, tmp_path, safe_serialization=True, model_args=dict(in_chans=4, num_classes=3))
    restored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert all(torch.equal(value, restored.state_dict()[key]) for key, value in source.state_dict().items())
    assert torch.equal(logits(restored(x))[0], logits(source(x))[0])


@each_network
@pytest.mark.parametrize("envelope", ["", "state_dict", "network_weights"])
def test_own_checkpoints_stay_as_they_are(name: str, envelope: str) -> None:
    model = create(name)
    own = model.state_dict()
    convert = importlib.import_module(type(model).__module__).checkpoint_filter_fn
    once = convert({envelope: own} if envelope else own, model)
    for filtered in (once, convert(once, model)):
        assert filtered.keys() == own.keys()
        assert all(torch.equal(filtered[key], value) for key, value in own.items())


@each_network
def test_other_classes_keep_the_new_head(name: str) -> None:
    source, model = create(name, num_classes=3), create(name, seed=1, num_classes=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(vision_ssm.CheckpointError, match="other shapes"):
        vision_ssm.load_checkpoint(model, source.state_dict())
    vision_ssm.load_checkpoint(model, source.state_dict(), keep_head=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith(model.heads) else source.state_dict()[key]), key


@pytest.mark.parametrize("name", ["umamba_3d_test", "segmamba_test"])
def test_pretrained_weights_of_other_channels_are_refused(name: str, tmp_path: Path) -> None:
    """Several layers read a volume: none of them is guessed."""
    torch.save(create(name).state_dict(), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"), custom_load=True)
    restored = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    assert all(torch.equal(restored[key], value) for key, value in create(name).state_dict().items())
    with pytest.raises(vision_ssm.CheckpointError, match=r"other shapes: .*weight is .*expected"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=4)


def test_low_precision_network_under_autocast() -> None:
    model = create("umamba_3d_test").to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(volumes("umamba_3d_test").bfloat16())).all()
