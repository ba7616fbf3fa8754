"""The timm contract for plain backbones: one sequence of patch tokens from end to end, implemented once."""

from collections.abc import Sequence
from typing import List, Literal, Optional, Tuple, Union  # noqa: UP035 - TorchScript needs the typing forms

import torch
import torch.nn as nn
from timm.layers import DropPath, RmsNorm, get_device_dtype, to_2tuple
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size

from ..layers import rotary_tables, rotate
from ..scan import fix_in_trace
from ._base import Backbone, check_smallest, recomputed
from ._initialisation import init_truncated
from ._patches import PatchEmbed
from ._positions import resized_grid

__all__ = ["Block", "SequenceBackbone"]

ClassToken = Literal["middle", "first", "both_ends", False]
POOLS = ("", "avg", "max", "avgmax", "token", "last")


# Functions that FX tracing takes as they are, because they read shapes.
torch.fx.wrap("rotary_tables")
torch.fx.wrap("resized_grid")


@torch.fx.wrap
def _check_size(x: torch.Tensor, expected: Optional[Tuple[int, int]], smallest: int) -> None:
    if not torch.jit.is_scripting():
        fix_in_trace(x.shape[2:], "images")
    if expected is not None and (x.shape[2], x.shape[3]) != expected:
        raise ValueError(
            f"the image is {x.shape[2]}x{x.shape[3]} pixels, expected {expected[0]}x{expected[1]}: "
            "call set_input_size, or create the model with dynamic_img_size=True"
        )
    check_smallest(x, smallest)


class Block(nn.Module):
    """Add, norm, mix: takes and returns (mixer output, residual stream); the sum is formed by the next block."""

    def __init__(
        self, dim: int, mixer: nn.Module, rms_norm: bool = True, drop_path: float = 0.0, device=None, dtype=None
    ):
        super().__init__()
        self.norm = (RmsNorm if rms_norm else nn.LayerNorm)(dim, eps=1e-5, device=device, dtype=dtype)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def mix(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The mixer on normed tokens."""
        return self.mixer(x)

    def forward(
        self, hidden: torch.Tensor, residual: Optional[torch.Tensor], height: int, width: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        return self.mix(self.norm(residual), height, width), residual


class SequenceBackbone(Backbone):
    """Patch embedding -> position table -> blocks -> norm -> pooling -> head.

    A family passes its blocks, says in `_init_layer` how its layers start, and calls `init_weights`; it should need no
    other method. Intermediate features are the residual stream after a block (mixer output added), without norm; with
    the attribute `mixer_taps` the mixer output alone.

    Args:
        blocks: built by the family; `dim` wide.
        img_size: size that the position table is made for.
        patch_size, stride: of the patch embedding.
        class_token: where a class token stands in the sequence, False (or None, which timm drops) for none.
        pos_embed: learned position table.
        rope: rotary embedding of the mixer outputs and the residual stream before each block. Its tables are made for
            the grid of `img_size` (or `set_input_size`); for other sizes they are resized, as the reference does.
        rms_norm: RMSNorm, else LayerNorm.
        global_pool: "token" (the class token), "avg", "max" or "avgmax" over the patch tokens, "last" token, or "".
        dynamic_img_size: take other sizes than `img_size`, resizing the position table on the fly.
        img_pad: fill images up to whole patches.
        norm_drop_path: stochastic depth of the last mixer output, before the final norm.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        dim: int,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        class_token: ClassToken | None = None,
        pos_embed: bool = True,
        rope: bool = False,
        rms_norm: bool = True,
        global_pool: str = "avg",
        dynamic_img_size: bool = False,
        img_pad: bool = False,
        norm_drop_path: float = 0.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if class_token not in (None, False, "middle", "first", "both_ends"):
            raise ValueError(f"`class_token` is {class_token!r}: expected 'middle', 'first', 'both_ends' or False")
        dd = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = self.head_hidden_size = dim
        self.class_token = class_token or ""
        self.num_prefix_tokens = {"": 0, "both_ends": 2}.get(self.class_token, 1)
        self.rope = rope
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False
        self.mixer_taps = False  # intermediates are mixer outputs, without the residual stream
        self.img_size = to_2tuple(img_size)
        self.patch_embed = PatchEmbed(patch_size, stride or patch_size, in_chans, dim, img_pad, **dd)
        self.grid_size = self._grid(self.img_size)
        tokens = self.grid_size[0] * self.grid_size[1] + self.num_prefix_tokens
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **dd)) if self.num_prefix_tokens else None
        self.tail_token = nn.Parameter(torch.empty(1, 1, dim, **dd)) if class_token == "both_ends" else None
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim, **dd)) if pos_embed else None
        self.blocks = nn.ModuleList(blocks)
        self.depth = sum(isinstance(module, Block) for module in self.blocks.modules())
        self.drop_path = DropPath(norm_drop_path) if norm_drop_path else nn.Identity()
        self.norm = (RmsNorm if rms_norm else nn.LayerNorm)(dim, eps=1e-5, **dd)
        self.global_pool = self._checked_pool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes, **dd) if num_classes else nn.Identity()
        reduction = self.patch_embed.stride
        self.feature_info = [
            dict(num_chs=dim, reduction=reduction, module=f"blocks.{i}") for i in range(len(self.blocks))
        ]

    def _grid(self, size: Tuple[int, int]) -> Tuple[int, int]:
        grid = self.patch_embed.grid_size(size[0], size[1])
        if min(grid) < 1:
            raise ValueError(
                f"`img_size` is {tuple(size)}: expected at least {self.patch_embed.patch_size} pixels a side"
            )
        return grid

    def _checked_pool(self, pool: str) -> str:
        if pool not in POOLS or (pool == "token" and not self.num_prefix_tokens):
            raise ValueError(f"`global_pool` is {pool!r}: expected one of {POOLS}, 'token' with a class token only")
        return pool

    def _init_layer(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Linear) and name.endswith("out_proj"):
            with torch.no_grad():  # one residual addition a block
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)
                module.weight /= self.depth**0.5
        elif isinstance(getattr(module, "gamma", None), nn.Parameter):
            nn.init.constant_(module.gamma, module.layer_scale)
        elif module is self:
            for parameter in (self.pos_embed, self.cls_token, self.tail_token):
                if parameter is not None:
                    init_truncated(parameter)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters to leave out of weight decay."""
        return super().no_weight_decay() | {"pos_embed", "cls_token", "tail_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise learning rates."""
        return dict(
            stem=r"^cls_token|^tail_token|^pos_embed|^patch_embed",
            blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """A new classifier (none for 0 classes); the pooling stays unless one is given."""
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool)
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes else nn.Identity()
        self.head.train(self.training)

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Change the image size, resizing the position table in place.

        Raises:
            ValueError: `patch_size` differs from the model's (its filters cannot be resized).
        """
        if patch_size is not None and to_2tuple(patch_size) != to_2tuple(self.patch_embed.patch_size):
            raise ValueError(f"`patch_size` is {patch_size}: this model's stays {self.patch_embed.patch_size}")
        if img_size is None:
            return
        size = to_2tuple(img_size)
        grid = self._grid(size)
        if self.pos_embed is not None and grid != self.grid_size:
            resized = self.resized_positions(self.pos_embed, self.grid_size, grid)
            self.pos_embed = nn.Parameter(resized.detach(), requires_grad=self.pos_embed.requires_grad)
        self.img_size, self.grid_size = size, grid
        update_model_input_size(self, size)

    def _split(self, x: torch.Tensor, patches: int) -> Tuple[torch.Tensor, torch.Tensor]:
        """Patch tokens and class tokens of a sequence."""
        if self.class_token == "middle":
            m = patches // 2
            return torch.cat([x[:, :m], x[:, m + 1 :]], dim=1), x[:, m : m + 1]
        if self.class_token == "first":
            return x[:, 1:], x[:, :1]
        if self.class_token == "both_ends":
            return x[:, 1:-1], torch.cat([x[:, :1], x[:, -1:]], dim=1)
        return x, x[:, :0]

    def _join(self, patches: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `_split`."""
        if self.class_token == "middle":
            m = patches.shape[1] // 2
            return torch.cat([patches[:, :m], tokens, patches[:, m:]], dim=1)
        if self.class_token == "first":
            return torch.cat([tokens, patches], dim=1)
        if self.class_token == "both_ends":
            return torch.cat([tokens[:, :1], patches, tokens[:, 1:]], dim=1)
        return patches

    def resized_positions(self, table: torch.Tensor, old: Tuple[int, int], new: Tuple[int, int]) -> torch.Tensor:
        """A position table for another grid; the class tokens' rows stay as they are."""
        patches, tokens = self._split(table, old[0] * old[1])
        return self._join(resized_grid(patches, old, new), tokens)

    @torch.jit.ignore
    def table_grid(self) -> tuple[int, int] | None:
        """The grid that the position table is for."""
        return None if self.pos_embed is None else self.grid_size

    def _embed(self, x: torch.Tensor) -> Tuple[torch.Tensor, int, int]:
        smallest = 1 if self.patch_embed.pad else self.patch_embed.patch_size
        _check_size(x, None if self.dynamic_img_size else self.img_size, smallest)
        x = self.patch_embed(x)
        height, width = x.shape[1], x.shape[2]
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            tokens = self.cls_token
            if self.tail_token is not None:
                tokens = torch.cat([tokens, self.tail_token], dim=1)
            x = self._join(x, tokens.expand(x.shape[0], -1, -1))
        if self.pos_embed is not None:
            table = self.pos_embed
            if self.dynamic_img_size:
                table = self.resized_positions(table, self.grid_size, (height, width))
            x = x + table
        return x, height, width

    def _turn(
        self,
        hidden: torch.Tensor,
        residual: Optional[torch.Tensor],
        tables: Optional[Tuple[torch.Tensor, torch.Tensor]],
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        if tables is not None:
            hidden = rotate(hidden, tables[0], tables[1])
            residual = residual if residual is None else rotate(residual, tables[0], tables[1])
        return hidden, residual

    def _rotary(self, x: torch.Tensor, height: int, width: int) -> Optional[Tuple[torch.Tensor, torch.Tensor]]:
        if not self.rope:
            return None
        return rotary_tables(x.shape[2], (height, width), self.grid_size, device=x.device)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """The residual stream after chosen blocks, as maps ("NCHW") or patch tokens ("NLC"), and the final features."""
        assert output_fmt in ("NCHW", "NLC"), "Output format must be one of NCHW or NLC."
        take, last = feature_take_indices(len(self.blocks), indices)
        hidden, height, width = self._embed(x)
        residual: Optional[torch.Tensor] = None
        rotary = self._rotary(hidden, height, width)
        maps, prefixes = [], []
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice a ModuleList
            blocks = self.blocks
        else:
            blocks = self.blocks[: last + 1]
        for i, block in enumerate(blocks):
            hidden, residual = self._turn(hidden, residual, rotary)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                hidden, residual = recomputed(block, hidden, residual, height, width)
            else:
                hidden, residual = block(hidden, residual, height, width)
            if i in take:
                tap = hidden if self.mixer_taps else residual + hidden
                tap, prefix = self._split(self.norm(tap) if norm else tap, height * width)
                if output_fmt == "NCHW":
                    tap = tap.unflatten(1, [height, width]).permute(0, 3, 1, 2).contiguous()
                maps.append(tap)
                prefixes.append(prefix)
        if not torch.jit.is_scripting() and return_prefix_tokens:
            maps = list(zip(maps, prefixes, strict=True))
        if intermediates_only:
            return maps
        final = self.drop_path(hidden) if residual is None else residual + self.drop_path(hidden)
        return self.norm(final), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Keep what the given taps need; returns their absolute indices."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def get_intermediate_layers(self, x: torch.Tensor, n: int | list[int] = 1, norm: bool = True) -> list[torch.Tensor]:
        """DINO-style alias: patch tokens after chosen blocks."""
        return self.forward_intermediates(x, n, norm=norm, output_fmt="NLC", intermediates_only=True)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        hidden, height, width = self._embed(x)
        residual: Optional[torch.Tensor] = None
        rotary = self._rotary(hidden, height, width)
        for block in self.blocks:
            hidden, residual = self._turn(hidden, residual, rotary)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                hidden, residual = recomputed(block, hidden, residual, height, width)
            else:
                hidden, residual = block(hidden, residual, height, width)
        final = self.drop_path(hidden) if residual is None else residual + self.drop_path(hidden)
        return self.norm(final)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Features (batch, tokens, dim) to (batch, dim), or unchanged for pooling ""."""
        if self.global_pool == "":
            return x
        if self.global_pool == "last":
            return x[:, -1]
        patches, tokens = self._split(x, x.shape[1] - self.num_prefix_tokens)
        if self.global_pool == "token":
            return tokens.mean(dim=1)
        if self.global_pool == "avg":
            return patches.mean(dim=1)
        if self.global_pool == "max":
            return patches.amax(dim=1)
        return 0.5 * (patches.mean(dim=1) + patches.amax(dim=1))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)


def block_drop_paths(rate: float, depth: int) -> list[float]:
    """Stochastic depth of each block and of the final sum.

    The rates of the reference: each mixer output is dropped where it is added, one block later, so the first block adds
    nothing and the last rate belongs to the final norm.
    """
    rates = torch.linspace(0, rate, depth, dtype=torch.float32, device="cpu").tolist()
    return [0.0, *rates]
