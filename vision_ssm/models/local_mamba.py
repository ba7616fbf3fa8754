"""LocalMamba: windowed scans chosen for each block, in a plain (LocalVim) and a hierarchical (LocalVMamba) backbone.

Paper: Huang et al., LocalMamba, https://arxiv.org/abs/2403.09338
Reference code and weights: https://github.com/hunto/LocalMamba (Apache-2.0).

Differences: each path owns its A (in the reference a checkpoint loaded on a CPU overwrites all four with the last), and
vertical scans of non-square maps are put back by their inverse. `restore="twice"` reproduces the reference, which
permutes a second time: square images give the same, weights trained on other ones may need it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import rename, stack_paths, unwrap
from ..layers import SS2D, LocalMamba, SelectiveSSM
from ..scan import Middle, Restored, ScanPath, Window, column, row
from ._base import build, pretrained_cfg
from ._initialisation import SSMInit, checked_ssm_init, init_linear, init_ssm_as_linear
from ._positions import fit_positions
from ._sequence import Block, SequenceBackbone, block_drop_paths
from .vmamba import VMamba
from .vmamba import checkpoint_filter_fn as vmamba_filter_fn

__all__ = ["LocalVMamba", "LocalVisionMamba", "direction"]

Directions = Sequence[Sequence[str]]

_SEARCHED_VIM = (
    "h v- w7 w7-, h- w2- w7 w7-, h h- v w7, h h- v v-, h h- v v-, h h- v v-, h- v v- w7, h- v v- w2-, h h- v v-, "
    "h h- v v-, h v v- w2, h v v- w2-, h h- v- w7, h- v v- w2, h h- v v-, h v w2 w2-, v v- w2 w7, h h- v w2, "
    "h h- w2- w7, v v- w2 w2-"
)
_SEARCHED_VMAMBA_TINY = (
    "h h- w7 w7-, h- v- w2 w2-, h- v- w2- w7, h- v v- w2, h h- v- w2-, h- v- w2 w2-, h w2- w7 w7-, h h- v v-, "
    "h v- w7 w7-, h- v w2 w7-, v v- w2 w7-, h h- v- w2-, v- w2- w7 w7-, h- v- w2- w7-, h- v w7 w7-"
)
_SEARCHED_VMAMBA_SMALL = (
    "h v v- w7-, h h- v w7, h- v v- w7, h- v w2- w7, h- v w2- w7, h- v- w2 w7-, h- v v- w7, h v v- w7, "
    "h v v- w7, h v v- w7-, h h- v v-, h v v- w2, v v- w2- w7, h h- v w2, h- v v- w7-, h h- v v-, h v v- w7-, "
    "h v v- w7-, h h- v- w7, h- v- w2- w7, h- v v- w7-, v v- w7 w7-, h v v- w7-, h- v v- w2, h v v- w2-, "
    "h h- v w7, h h- w7 w7-, h v- w2 w2-, h v- w2 w7, h v v- w7-, h- v w2- w7, h- v- w7 w7-, h v w7 w7-"
)


def direction(name: str, restore: Literal["inverse", "twice"] = "inverse") -> ScanPath:
    """The scan path of a direction: "h" rows, "v" columns, "w7" windows of 7, reversed with a "-" behind.

    Raises:
        ValueError: no direction, or no way to restore one.
    """
    if restore not in ("inverse", "twice"):
        raise ValueError(f"`restore` is {restore!r}: expected 'inverse' or 'twice'")
    kind = name.removesuffix("-")
    if kind == "h":
        path: ScanPath = row()
    elif kind == "v":
        path = column() if restore == "inverse" else Restored(column())
    elif kind[:1] == "w" and kind[1:].isdigit():
        path = Window(int(kind[1:]))
    else:
        raise ValueError(f"direction {name!r}: expected h, v or w and a window size, with '-' behind for the reverse")
    return path.reversed() if name.endswith("-") else path


def _listed(directions: str | Directions, depth: int) -> list[list[str]]:
    """One list of directions a block, from a text of lists or one list for all."""
    if isinstance(directions, str):
        directions = [part.split() for part in directions.split(",")]
    directions = [list(block) for block in directions]
    if len(directions) == 1:
        directions = directions * depth
    if len(directions) != depth:
        raise ValueError(f"`directions` has {len(directions)} lists: expected one, or one for each of {depth} blocks")
    return directions


class _LocalBlock(Block):
    def mix(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return self.mixer(x, [height, width])


class LocalVisionMamba(SequenceBackbone):
    """LocalVim backbone for any image size (filled up to whole patches).

    Args:
        directions: for each block its scan directions (see `direction`), as lists or as text: "h v-, h w7". One list
            serves all blocks. "searched" are those found for LocalVim-T.
        restore: how vertical scans are put back, see the module.
        class_token: "middle" puts one in the middle of every scan (without rope), False pools the mean.
        rms_norm: RMSNorm, else LayerNorm (the reference's dense models).
        ssm_init: start of the projections to steps, B and C and of the steps' bias. "reference": as all linear layers,
            truncated normal of 0.02 with a bias of 0, so that a step is softplus(0) = 0.69, as in the published
            training. This is an accident of its code, whose pass over the linear layers overwrites Mamba's start.
            "mamba": as in Mamba, with steps of 0.001 to 0.1.
        Others: see `SequenceBackbone`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        dim: int = 192,
        depth: int = 20,
        directions: str | Directions = "searched",
        d_state: int = 16,
        restore: Literal["inverse", "twice"] = "inverse",
        class_token: Literal["middle", False] | None = None,
        rms_norm: bool = True,
        global_pool: str | None = None,
        dynamic_img_size: bool = True,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ssm_init: SSMInit = "reference",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if class_token not in (None, False, "middle"):
            raise ValueError(f"`class_token` is {class_token!r}: expected 'middle' or False")
        directions = _listed(_SEARCHED_VIM if directions == "searched" else directions, depth)
        paths = [[direction(name, restore) for name in block] for block in directions]
        if class_token:
            paths = [[Middle(path) for path in block] for block in paths]
        rates = block_drop_paths(drop_path_rate, depth)
        blocks = [
            _LocalBlock(dim, LocalMamba(dim, block_paths, d_state, **dd), rms_norm, drop_path=rate, **dd)
            for block_paths, rate in zip(paths, rates, strict=False)
        ]
        super().__init__(
            blocks,
            dim,
            img_size,
            patch_size,
            class_token=class_token,
            rope=not class_token,
            rms_norm=rms_norm,
            global_pool=("token" if class_token else "avg") if global_pool is None else global_pool,
            dynamic_img_size=dynamic_img_size,
            img_pad=True,
            norm_drop_path=rates[-1],
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
            **dd,
        )
        self.ssm_init = checked_ssm_init(ssm_init)
        self.init_weights(needs_reset=False)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        if isinstance(module, nn.Linear):
            init_linear(module)
        elif isinstance(module, SelectiveSSM) and self.ssm_init == "reference":
            init_ssm_as_linear(module)
        super()._init_layer(module, name)
        if module is self and self.cls_token is not None:
            nn.init.zeros_(self.cls_token)


class LocalVMamba(VMamba):
    """LocalVMamba backbone: vanilla VMamba with chosen directions and `PathGate`; any image size.

    Args:
        depths, dim, d_state: as in `VMamba`.
        directions: for each block, in order over the stages, its scan directions, as in `LocalVisionMamba`.
        restore: how vertical scans are put back, see the module.
        Others: as in `VMamba`.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 9, 2),
        dim: int = 96,
        d_state: int = 16,
        directions: str | Directions = _SEARCHED_VMAMBA_TINY,
        restore: Literal["inverse", "twice"] = "inverse",
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
        **kwargs,
    ):
        dd = {"device": device, "dtype": dtype}
        lists = iter(_listed(directions, sum(depths)))
        super().__init__(
            depths, dim, d_state, 2.0, True, "silu", 0.0, "patch", "merge",
            mixers=lambda width: SS2D(
                width, d_state, paths=[direction(name, restore) for name in next(lists)], path_gate=True, **dd
            ),
            drop_path_rate=drop_path_rate, **kwargs, **dd,
        )  # fmt: skip


_NAMES = [(r"^norm_f\.", "norm."), (r"^layers\.", "blocks.")]
_GATE = [
    (r"\.attn\.norm\.", ".path_gate.norm."),
    (r"\.attn\.global_reduce\.", ".path_gate.reduce."),
    (r"\.attn\.channel_select\.", ".path_gate.expand."),
]
_PATHS = {
    ours: tuple(theirs.format(k) for k in range(8))
    for ours, theirs in {
        "conv1d.weight": "conv1d_{}.weight",
        "conv1d.bias": "conv1d_{}.bias",
        "ssm.x_proj": "x_proj_{}.weight",
        "ssm.dt_proj": "dt_proj_{}.weight",
        "ssm.dt_bias": "dt_proj_{}.bias",
        "ssm.A_log": "A_log_{}",
        "ssm.D": "D_{}",
    }.items()
}


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A published LocalVim or LocalVMamba state dict in this package's names; ours unchanged."""
    if isinstance(model, LocalVMamba):
        return vmamba_filter_fn(state_dict, model)
    state_dict = unwrap(state_dict)
    if any(name.startswith("layers.") for name in state_dict):
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith("rope.")}
        state_dict = stack_paths(rename(state_dict, _NAMES + _GATE), _PATHS)
    return fit_positions(state_dict, model)


_VARIANTS = {
    "local_vim_tiny": dict(dim=192),
    "local_vim_tiny_middle_cls_token": dict(dim=192, class_token="middle"),
    "local_vim_small": dict(dim=384, directions="h h- w2 w2-"),
    "local_vmamba_tiny": dict(),
    "local_vmamba_small": dict(depths=(2, 2, 27, 2), directions=_SEARCHED_VMAMBA_SMALL),
    "local_vim_test": dict(img_size=64, patch_size=8, dim=32, depth=3, directions="h h- v w3-"),
    "local_vmamba_test": dict(depths=(1, 1, 2, 1), dim=16, directions="h v- w2 w3-"),
}


def _cfg(name: str, **kwargs) -> dict:
    if "vmamba" in name:
        defaults = dict(first_conv="stem.0", classifier="head.fc", pool_size=(7, 7))
    else:
        defaults = dict(first_conv="patch_embed.proj", classifier="head", pool_size=None)
    return pretrained_cfg(facts("local_mamba", name), **(defaults | kwargs))


_UNTRAINED = dict(url="", custom_load=False)
default_cfgs = generate_default_cfgs(
    {f"{name}.hunto_in1k": _cfg(name) for name in _VARIANTS if not name.endswith("_test")}
    | {
        "local_vim_test.untrained": _cfg("local_vim_tiny", input_size=(3, 64, 64), **_UNTRAINED),
        "local_vmamba_test.untrained": _cfg("local_vmamba_tiny", **_UNTRAINED),
    }
)


def _local_vim(name: str, pretrained: bool, **kwargs) -> LocalVisionMamba:
    feature_cfg = dict(out_indices=3, feature_cls="getter")
    return build(LocalVisionMamba, name, pretrained, feature_cfg, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


def _local_vmamba(name: str, pretrained: bool, **kwargs) -> LocalVMamba:
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return build(LocalVMamba, name, pretrained, feature_cfg, checkpoint_filter_fn, **(_VARIANTS[name] | kwargs))


@register_model
def local_vim_tiny(pretrained: bool = False, **kwargs) -> LocalVisionMamba:
    """LocalVim-T with its searched directions."""
    return _local_vim("local_vim_tiny", pretrained, **kwargs)


@register_model
def local_vim_tiny_middle_cls_token(pretrained: bool = False, **kwargs) -> LocalVisionMamba:
    """LocalVim-T with a class token in the middle of every scan, without rope."""
    return _local_vim("local_vim_tiny_middle_cls_token", pretrained, **kwargs)


@register_model
def local_vim_small(pretrained: bool = False, **kwargs) -> LocalVisionMamba:
    """LocalVim-S; `directions='searched'` takes those of LocalVim-T."""
    return _local_vim("local_vim_small", pretrained, **kwargs)


@register_model
def local_vmamba_tiny(pretrained: bool = False, **kwargs) -> LocalVMamba:
    """LocalVMamba-T."""
    return _local_vmamba("local_vmamba_tiny", pretrained, **kwargs)


@register_model
def local_vmamba_small(pretrained: bool = False, **kwargs) -> LocalVMamba:
    """LocalVMamba-S."""
    return _local_vmamba("local_vmamba_small", pretrained, **kwargs)


@register_model
def local_vim_test(pretrained: bool = False, **kwargs) -> LocalVisionMamba:
    """A small LocalVim for fast tests."""
    return _local_vim("local_vim_test", pretrained, **kwargs)


@register_model
def local_vmamba_test(pretrained: bool = False, **kwargs) -> LocalVMamba:
    """A small LocalVMamba for fast tests."""
    return _local_vmamba("local_vmamba_test", pretrained, **kwargs)
