"""Position tables of checkpoints: resized to the model's grid, or refused, through every door."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_models import create, images

import vision_ssm
from vision_ssm.checkpoints import CheckpointError

SQUARE, WIDE, TALL = (64, 64), (32, 128), (128, 32)  # 8x8, 4x16 and 16x4 tokens
TOKENS = {"vim_test": {}, "local_vim_test": dict(class_token="middle")}
each_table = pytest.mark.parametrize("name", TOKENS)


def _made(name: str, size: tuple[int, int], seed: int = 0) -> torch.nn.Module:
    return create(name, seed, img_size=size, dynamic_img_size=False, **TOKENS[name])


def _resized(model: torch.nn.Module, size: tuple[int, int]) -> torch.Tensor:
    """The table by definition: bicubic on the grid, the class token's row in the middle as it is."""
    (height, width), table = model.grid_size, model.pos_embed.detach()
    middle = height * width // 2
    patches = torch.cat([table[:, :middle], table[:, middle + 1 :]], dim=1)
    image = patches.reshape(1, height, width, -1).permute(0, 3, 1, 2)
    grid = [side // 8 for side in size]
    image = torch.nn.functional.interpolate(image, grid, mode="bicubic", align_corners=False)
    patches = image.permute(0, 2, 3, 1).reshape(1, height * width, -1)
    return torch.cat([patches[:, :middle], table[:, middle : middle + 1], patches[:, middle:]], dim=1)


@each_table
@pytest.mark.parametrize("size", [SQUARE, TALL])
def test_as_many_tokens_in_another_shape(name: str, size: tuple[int, int], tmp_path) -> None:
    """The state dict of a wide model says so, in memory and in every kind of file."""
    wide = _made(name, WIDE)
    expected = _resized(wide, size)
    torch.save({"model": wide.state_dict()}, tmp_path / "wide.pth")
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    for source in (wide.state_dict(), tmp_path / "wide.pth", tmp_path / "wide.safetensors"):
        model = vision_ssm.load_checkpoint(_made(name, size, 1), source)
        torch.testing.assert_close(model.pos_embed, expected, msg=str(source))
    model = _made(name, size, 1)
    model.load_state_dict(load_file(tmp_path / "wide.safetensors"))
    torch.testing.assert_close(model.pos_embed, expected)
    overlay = dict(file=str(tmp_path / "wide.pth"), custom_load=True)
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=size, **TOKENS[name])
    torch.testing.assert_close(model.pos_embed, expected)
    again = _made(name, WIDE)
    again.set_input_size(size)
    torch.testing.assert_close(again.pos_embed, expected)
    assert ("pos_grid" in again.state_dict()) == (size == TALL)


@each_table
def test_own_wide_checkpoints_stay_as_they_are(name: str, tmp_path) -> None:
    wide, x = _made(name, WIDE), images(1, *WIDE)
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    for source in (wide.state_dict(), tmp_path / "wide.safetensors", pickle.loads(pickle.dumps(wide)).state_dict()):
        assert torch.equal(vision_ssm.load_checkpoint(_made(name, WIDE, 1), source)(x), wide(x))


@each_table
def test_a_table_whose_grid_nothing_tells_is_refused(name: str) -> None:
    """A square model's, or that of a wide one from before its state dict said so; the message says how to go on."""
    square, wide = _made(name, SQUARE), _made(name, WIDE, 1)
    for load in (lambda source: vision_ssm.load_checkpoint(wide, source), wide.load_state_dict):
        with pytest.raises(CheckpointError, match=r"64 tokens.*8x8 or the model's 4x16.*pos_grid.*\[8, 8\].*\[4, 16\]"):
            load(square.state_dict())
        load(square.state_dict() | {"pos_grid": torch.tensor([8, 8])})
        torch.testing.assert_close(wide.pos_embed, _resized(square, WIDE))
        load(square.state_dict() | {"pos_grid": torch.tensor([4, 16])})
        assert torch.equal(wide.pos_embed, square.pos_embed)


@pytest.mark.parametrize("grid", [[8.0, 8.0], [8], [[8, 8]], [0, 64], [8, 7]])
def test_wrong_grids(grid: list) -> None:
    source = _made("vim_test", SQUARE).state_dict() | {"pos_grid": torch.tensor(grid)}
    with pytest.raises(CheckpointError, match="pos_grid"):
        vision_ssm.load_checkpoint(_made("vim_test", WIDE), source)


def test_square_models_keep_the_published_names() -> None:
    assert "pos_grid" not in _made("vim_test", SQUARE).state_dict()


def test_volumes() -> None:
    """Mamba-ND: trilinear; a cube's table may be anything with as many tokens."""
    long, wide, cube = (
        create("mamba_nd_3d_test", seed, input_size=size)
        for seed, size in enumerate([(64, 32, 16), (16, 32, 64), (32, 32, 32)])
    )
    torch.nn.init.normal_(long.pos_embed)
    image = long.pos_embed.detach().reshape(1, 4, 2, 1, -1).permute(0, 4, 1, 2, 3)
    expected = torch.nn.functional.interpolate(image, (1, 2, 4), mode="trilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(vision_ssm.load_checkpoint(wide, long.state_dict()).pos_embed, expected)
    assert vision_ssm.load_checkpoint(cube, long.state_dict()).pos_embed.shape == cube.pos_embed.shape
    with pytest.raises(CheckpointError, match="2x2x2 or the model's 4x2x1"):
        vision_ssm.load_checkpoint(long, cube.state_dict())


def test_windows() -> None:
    """Swin-UNet's windows of 4x2 and 2x4 have as many relative positions."""
    tall, wide, larger = (create("swin_unet_weak_test", img_size=size) for size in ((64, 32), (32, 64), (128, 256)))
    with pytest.raises(CheckpointError, match=r"windows of 4x2, expected 2x4.*img_size"):
        vision_ssm.load_checkpoint(wide, tall.state_dict())
    other = create("swin_unet_weak_test", 1, img_size=(64, 32))
    x = torch.randn(1, 3, 64, 32)
    assert torch.equal(vision_ssm.load_checkpoint(other, tall.state_dict())(x), tall(x))
    vision_ssm.load_checkpoint(larger, create("swin_unet_weak_test", img_size=(256, 128)).state_dict())
