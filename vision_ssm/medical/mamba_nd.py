"""Mamba-ND for volumes: Mamba along the axes in turn as the encoder of UNETR, trained on BTCV.

Paper: Li et al., Mamba-ND: Selective State Space Modeling for Multi-Dimensional Data, ECCV 2024, arXiv 2402.05892
Reference code and weights: https://github.com/jacklishufan/Mamba-ND (no licence stated).

A block has its skip behind the norm: h = norm(x), then h + mamba(h). The reference computes one block more, the 24th,
whose output nothing reads; it is left out here and from published files. Volumes need not be square.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import PathMamba
from ..models._positions import fit_positions
from ..scan import Axes, fix_in_trace
from ._base import DenseNetwork, create, network_cfg, run
from ._conv import ConvLayers, ResidualBlock, UpBlock
from ._tokens import as_tokens, in_full_precision

__all__ = ["MambaND"]

_PATCH = 16
_ORDERS = tuple(map(Axes, ((0, 1, 2), (0, 2, 1), (2, 1, 0))))


class MambaNDBlock(nn.Module):
    """h + mamba(h) with h = norm(x), along one scan path; (batch, tokens, dim) of a grid to the same shape.

    Args:
        dim: width of the tokens.
        index: of the block. Each order of the axes serves two blocks in turn, the second one backwards.
        drop_rate, drop_path: of the mixer's output.
    """

    def __init__(self, dim: int, index: int, drop_rate: float = 0.0, drop_path: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        path = _ORDERS[index // 2 % len(_ORDERS)]
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = PathMamba(dim, [path.reversed() if index % 2 else path], **dd)
        self.drop = nn.Dropout(drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor, grid: list[int]) -> torch.Tensor:
        x = self.norm(x)
        return x + self.drop_path(self.drop(in_full_precision(self.mixer, x, grid)))


def _upsamplings(layers: ConvLayers, in_chans: int, out_chans: int, times: int) -> nn.Sequential:
    """Transposed convolutions from the tokens' map to a skip `times` doublings finer, residual blocks between them."""
    parts = [layers.up_conv(in_chans, out_chans)]
    for _ in range(times - 1):
        parts += [layers.up_conv(out_chans, out_chans), ResidualBlock(layers, out_chans, out_chans)]
    return nn.Sequential(*parts)


class MambaND(DenseNetwork):
    """Mamba-ND's UNETR.

    Args:
        input_size: sides of the volume, one number or three, multiples of 16. The position embedding belongs to them;
            that of a checkpoint for another size is resized when it is loaded.
        dim: width of the tokens, which are patches of 16 voxels a side.
        features: channels at full resolution.
        depth: blocks of the encoder.
        taps: the three blocks whose outputs become skips, from the finest to the coarsest.
        drop_rate, drop_path_rate: of the mixers' outputs; the latter grows from 0 over the blocks.

    Shapes: (batch, in_chans, depth, height, width) to (batch, num_classes, depth, height, width), raw logits.
    """

    dims = 3
    multiples = (_PATCH,) * 3
    num_prefix_tokens = 0
    heads = ("head.",)

    def __init__(
        self,
        input_size: int | Sequence[int] = 96,
        in_chans: int = 1,
        num_classes: int = 14,
        dim: int = 384,
        features: int = 32,
        depth: int = 23,
        taps: Sequence[int] = (6, 12, 18),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.input_size = (input_size,) * 3 if isinstance(input_size, int) else tuple(input_size)
        if len(self.input_size) != 3 or any(side % _PATCH or side == 0 for side in self.input_size):
            raise ValueError(f"`input_size` is {input_size}: expected one or three multiples of {_PATCH}")
        if len(taps) != 3 or max(taps) >= depth:
            raise ValueError(f"`taps` is {tuple(taps)}: expected three blocks before {depth}")
        self.in_chans, self.num_classes, self.taps = in_chans, num_classes, tuple(taps)
        self.grid = [side // _PATCH for side in self.input_size]
        self.patch_embed = nn.Conv3d(in_chans, dim, _PATCH, _PATCH, **dd)
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), dim, **dd))
        rates = torch.linspace(0, drop_path_rate, depth, dtype=torch.float32, device="cpu").tolist()
        self.blocks = nn.ModuleList(MambaNDBlock(dim, i, drop_rate, rate, **dd) for i, rate in enumerate(rates))
        layers = ConvLayers(3, "instance_plain", bias=False, **dd)
        widths = [features * 2**i for i in range(4)]
        self.skips = nn.ModuleList([ResidualBlock(layers, in_chans, features)])
        self.skips.extend(_upsamplings(layers, dim, width, 4 - i) for i, width in enumerate(widths) if i)
        self.ups = nn.ModuleList(UpBlock(layers, *pair) for pair in zip([dim, *widths[:0:-1]], widths[::-1]))
        self.head = layers.conv(features, num_classes, 1, bias=True)
        self.init_weights(needs_reset=False)

    def table_grid(self) -> tuple[int, int, int]:
        """The grid that the positions are for."""
        return tuple(self.grid)

    def resized_positions(self, table: torch.Tensor, old: Sequence[int], new: Sequence[int]) -> torch.Tensor:
        """Positions (1, tokens, dim) for another grid, trilinear."""
        volume = table.unflatten(1, tuple(old)).permute(0, 4, 1, 2, 3)
        return as_tokens(F.interpolate(volume.float(), tuple(new), mode="trilinear")).to(table.dtype)

    def reset_parameters(self) -> None:
        """Positions start at 0, as in the reference."""
        nn.init.zeros_(self.pos_embed)

    def nominal_sides(self) -> tuple[int, ...]:
        """The size that the positions are for."""
        return self.input_size

    def get_classifier(self) -> nn.Module:
        """The last convolution."""
        return self.head

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps (batch, dim, *grid) of the tokens after the tapped blocks and after the last one."""
        tokens, maps = as_tokens(self.patch_embed(x)) + self.pos_embed, []
        for i, block in enumerate(self.blocks):
            tokens = run(block, self.grad_checkpointing, tokens, self.grid)
            if i in self.taps or i == len(self.blocks) - 1:
                maps.append(tokens.transpose(1, 2).unflatten(2, self.grid))
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        fix_in_trace(x.shape[2:], "volumes")
        if tuple(x.shape[2:]) != self.input_size:
            raise ValueError(
                f"input of {tuple(x.shape[2:])}: expected {self.input_size}, the size that the positions are for; use "
                "sliding windows, or another `input_size`"
            )
        maps = [x, *self.encode(x)]
        x = maps.pop()
        skips = [run(skip, self.grad_checkpointing, y) for skip, y in zip(self.skips, maps)]
        for up in self.ups:
            x = run(up, self.grad_checkpointing, x, skips.pop())
        return self.head(x)


_NAMES = [
    (r"^vit\.pos_embed$", "pos_embed"),
    (r"^vit\.patch_embed\.projection\.", "patch_embed."),
    (r"^vit\.layers\.", "blocks."),
    (r"^encoder1\.layer\.", "skips.0."),
    (r"^encoder([234])\.transp_conv_init\.conv\.", lambda m: f"skips.{int(m[1]) - 1}.0."),
    (r"^encoder([234])\.blocks\.(\d)\.0\.conv\.", lambda m: f"skips.{int(m[1]) - 1}.{1 + 2 * int(m[2])}."),
    (r"^encoder([234])\.blocks\.(\d)\.1\.", lambda m: f"skips.{int(m[1]) - 1}.{2 + 2 * int(m[2])}."),
    (r"^decoder([2345])\.transp_conv\.conv\.", lambda m: f"ups.{5 - int(m[1])}.up."),
    (r"^decoder([2345])\.conv_block\.", lambda m: f"ups.{5 - int(m[1])}.block."),
    (r"^out\.conv\.conv\.", "head."),
    (r"^((?:skips|ups)\..*)\.conv([12])\.conv\.", r"\1.conv\2."),
    (r"^((?:skips|ups)\..*)\.conv3\.conv\.", r"\1.skip.conv."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of Mamba-ND's UNETR in this package's names, without the last block, which has no effect."""
    state_dict = unwrap(state_dict)
    if not any(name.startswith("vit.") for name in state_dict):
        return fit_positions(state_dict, model)
    unread = f"vit.layers.{len(model.blocks)}."
    used = {name: value for name, value in state_dict.items() if not name.startswith(unread)}
    return fit_positions(stack_paths(rename(used, _NAMES), mamba_parameters()), model)


_VARIANTS = {
    "mamba_nd_small_btcv": dict(dim=384, features=32),
    "mamba_nd_small_plus_btcv": dict(dim=512, features=32),
    "mamba_nd_base_btcv": dict(dim=768, features=32),
    "mamba_nd_base_f64_btcv": dict(dim=768, features=64),
    "mamba_nd_3d_test": dict(input_size=32, dim=16, features=4, depth=7, taps=(1, 2, 4)),
}


def _cfg(name: str) -> dict:
    known = facts("mamba_nd", "mamba_nd_small_btcv" if name == "mamba_nd_3d_test" else name)
    without = dict(url="", custom_load=False) if name == "mamba_nd_3d_test" else {}
    return network_cfg(known, num_classes=14, first_conv="patch_embed", classifier="head", **without)


default_cfgs = generate_default_cfgs(
    {f"{name}.{'untrained' if name == 'mamba_nd_3d_test' else 'btcv'}": _cfg(name) for name in _VARIANTS}
)


def _create(name: str, pretrained: bool, **kwargs) -> MambaND:
    return create(MambaND, name, pretrained, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def mamba_nd_small_btcv(pretrained: bool = False, **kwargs) -> MambaND:
    """Mamba-ND S in UNETR, BTCV."""
    return _create("mamba_nd_small_btcv", pretrained, **kwargs)


@register_model
def mamba_nd_small_plus_btcv(pretrained: bool = False, **kwargs) -> MambaND:
    """Mamba-ND S+ in UNETR, BTCV."""
    return _create("mamba_nd_small_plus_btcv", pretrained, **kwargs)


@register_model
def mamba_nd_base_btcv(pretrained: bool = False, **kwargs) -> MambaND:
    """Mamba-ND B in UNETR with 32 features, BTCV."""
    return _create("mamba_nd_base_btcv", pretrained, **kwargs)


@register_model
def mamba_nd_base_f64_btcv(pretrained: bool = False, **kwargs) -> MambaND:
    """Mamba-ND B in UNETR with 64 features, BTCV."""
    return _create("mamba_nd_base_f64_btcv", pretrained, **kwargs)


@register_model
def mamba_nd_3d_test(pretrained: bool = False, **kwargs) -> MambaND:
    """A small Mamba-ND for fast tests."""
    return _create("mamba_nd_3d_test", pretrained, **kwargs)
