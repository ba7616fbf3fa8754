"""nnMamba: residual convolutions and Mamba for volumes, to segment, to classify and to find landmarks.

Paper: Gong et al., nnMamba: 3D Biomedical Image Segmentation, Classification and Landmark Detection with State Space
Model, arXiv 2402.03526
Reference code: https://github.com/lhaof/nnMamba (no licence stated).

The reference holds several networks of the same names. These are `nnMambaSeg` of nnMamba.py, `nnMambaEncoder` of
nnMamba4cls.py and `nnMambaLand` of nnunet/training/network_training/nnMamba.py.

The scores of the segmentation and landmark networks are never negative, as in the reference: the last layers are batch
norm and ReLU, with no linear layer behind them, and published weights were trained so.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import Mamba, SiameseMamba
from ._base import DenseNetwork, create, network_cfg, run
from ._conv import ConvLayers, ResidualBlock
from ._tokens import TokenMixer, as_map, as_tokens, in_full_precision

__all__ = ["NnMambaClassifier", "NnMambaLandmark", "NnMambaSeg"]


class MixerLayer(nn.Module):
    """act(norm(conv(u + mixer(u)))) with u = act(norm(conv(x))), both convolutions 1x1."""

    def __init__(self, layers: ConvLayers, channels: int, mixer: nn.Module):
        super().__init__()
        self.before = layers.conv_norm_act(channels, channels, 1)
        self.mixer = mixer
        self.after = layers.conv_norm_act(channels, channels, 1)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        return as_map(self.mixer(as_tokens(x)), x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.after(x + in_full_precision(self._mix, x))


class _Block(ResidualBlock):
    """Residual block whose skip may have a mixer added to it."""

    def forward(self, x: torch.Tensor, mixer: nn.Module | None = None) -> torch.Tensor:
        y = self.branch(x) + self.skip(x)
        return self.act(y if mixer is None else y + mixer(x))


class Stage(nn.Module):
    """Residual blocks, the first of stride 2; one mixer serves all others (its weights and its statistics)."""

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, in_chans: int, out_chans: int, depth: int, mixer: nn.Module | None):
        super().__init__()
        plain = layers.like(bias=False)
        self.blocks = nn.ModuleList(
            _Block(plain, out_chans if i else in_chans, out_chans, stride=1 if i else 2) for i in range(depth)
        )
        self.mixer_layer = mixer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            x = run(block, self.grad_checkpointing, x, self.mixer_layer if i else None)
        return x


class ChannelGate(nn.Module):
    """Squeeze-and-excitation: each channel times a weight in (0, 1) of its own, computed from the global means."""

    def __init__(self, channels: int, reduction: int = 16, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.reduce = nn.Linear(channels, max(1, channels // reduction), **dd)
        self.expand = nn.Linear(max(1, channels // reduction), channels, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean(dim=(2, 3, 4))))))
        return x * gate.unflatten(1, (-1, 1, 1, 1)).to(x.dtype)


def double_conv(layers: ConvLayers, in_chans: int, out_chans: int, stride: int = 1) -> nn.Sequential:
    """Twice convolution, norm and activation."""
    return nn.Sequential(
        *layers.conv_norm_act(in_chans, out_chans, stride=stride), *layers.conv_norm_act(out_chans, out_chans)
    )


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="trilinear")


class _Decoder(nn.Module):
    """Upsampling, concatenation with the skips and two convolutions, from the deepest map to half resolution."""

    grad_checkpointing = False

    def __init__(self, layers: ConvLayers, widths: Sequence[int]):
        super().__init__()
        pairs = list(zip(widths[:0:-1], widths[-2::-1]))
        self.blocks = nn.ModuleList(double_conv(layers, deep + skip, skip) for deep, skip in pairs)

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        for block, skip in zip(self.blocks, reversed(skips)):
            x = run(block, self.grad_checkpointing, torch.cat([_doubled(x), skip], dim=1))
        return x


class _NnMamba(DenseNetwork):
    """Stem and residual stages that the three networks share: maps at strides 2, 4, 8 and 16.

    Args:
        in_chans: channels of the volume.
        num_classes: channels of the output.
        channels: of the stem; each stage doubles them.
        blocks: of each stage.
        mixers: one a stage, or none.
    """

    dims = 3
    multiples = (16, 16, 16)

    def __init__(
        self, in_chans: int, num_classes: int, channels: int, blocks: int, mixers: Sequence[nn.Module] = (), **dd
    ):
        super().__init__()
        if blocks < 1:
            raise ValueError(f"`blocks` is {blocks}: expected at least 1")
        self.in_chans, self.num_classes = in_chans, num_classes
        self.widths = [channels * 2**i for i in range(4)]
        layers = ConvLayers(3, "batch", slope=0, **dd)
        self.stem = double_conv(layers, in_chans, channels, stride=2)
        self.stages = nn.ModuleList(
            Stage(layers, *sizes, blocks, mixers[i] if mixers else None)
            for i, sizes in enumerate(zip(self.widths, self.widths[1:]))
        )

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The layers that end in the classes."""
        return self.head


class NnMambaSeg(_NnMamba):
    """nnMamba for segmentation: siamese Mamba layers in the encoder, channel gates on the skips.

    Args:
        in_chans, num_classes: channels of the volume and of the output.
        channels: of the stem; each of the three stages doubles them.
        blocks: residual blocks of each stage. All but the first of a stage share one siamese Mamba layer.

    Shapes: (batch, in_chans, depth, height, width) to (batch, num_classes, depth, height, width); each side is a
    multiple of 16. The scores are at least 0, see the module.
    """

    heads = ("head.",)

    def __init__(
        self, in_chans: int = 1, num_classes: int = 6, channels: int = 32, blocks: int = 3, device=None, dtype=None
    ):
        dd = {"device": device, "dtype": dtype}
        layers = ConvLayers(3, "batch", slope=0, **dd)
        plain = layers.like(bias=False)
        widths = [channels * 2**i for i in range(1, 4)]
        mixers = [MixerLayer(plain, width, SiameseMamba(width, **dd)) for width in widths] if blocks > 1 else []
        super().__init__(in_chans, num_classes, channels, blocks, mixers, **dd)
        self.gates = nn.ModuleList(ChannelGate(width, **dd) for width in self.widths[:3])
        self.decoder = _Decoder(layers, self.widths)
        self.head = double_conv(layers, channels, num_classes)
        self.init_weights(needs_reset=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        x = run(self.stem, self.grad_checkpointing, x)
        skips = []
        for gate, stage in zip(self.gates, self.stages):
            skips.append(gate(x))
            x = stage(x)
        return run(self.head, self.grad_checkpointing, _doubled(self.decoder(x, skips)))


class NnMambaLandmark(_NnMamba):
    """nnMamba for landmarks: one Mamba layer after the stem, and a heat map for each landmark.

    Args:
        in_chans: channels of the volume.
        num_classes: landmarks.
        channels: of the stem; each of the three stages doubles them.
        blocks: residual blocks of each stage.

    Shapes: (batch, in_chans, depth, height, width) to (batch, num_classes, depth, height, width); each side is a
    multiple of 16. The scores are at least 0, see the module.
    """

    heads = ("head.",)

    def __init__(
        self, in_chans: int = 1, num_classes: int = 6, channels: int = 32, blocks: int = 3, device=None, dtype=None
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, channels, blocks, **dd)
        layers = ConvLayers(3, "batch", slope=0, **dd)
        self.stem_mixer = TokenMixer(channels, Mamba(channels, **dd), residual=True, **dd)
        self.decoder = _Decoder(layers, self.widths)
        self.head = double_conv(layers, channels, num_classes)
        self.init_weights(needs_reset=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        x = run(self.stem, self.grad_checkpointing, x)
        skips = [x]  # without the mixer
        x = run(self.stem_mixer, self.grad_checkpointing, x)
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return run(self.head, self.grad_checkpointing, _doubled(self.decoder(x, skips[:-1])))


class NnMambaClassifier(_NnMamba):
    """nnMamba for classification: one Mamba layer after the stem, global means of the three stages, two linear layers.

    Args:
        in_chans: channels of the volume.
        num_classes: logits; the reference has one and takes its sigmoid.
        channels: of the stem; each of the three stages doubles them.
        blocks: residual blocks of each stage.
        drop_rate: dropout before the last layer, 0.5 in the reference.

    Shapes: (batch, in_chans, depth, height, width) to (batch, num_classes), for any sides.
    """

    heads = ("head.3.",)
    multiples = (1, 1, 1)

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 1,
        channels: int = 32,
        blocks: int = 3,
        drop_rate: float = 0.5,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans, num_classes, channels, blocks, **dd)
        layers = ConvLayers(3, "batch", slope=0, bias=False, **dd)
        self.stem_mixer = MixerLayer(layers, channels, Mamba(channels, d_state=8, **dd))
        self.head = nn.Sequential(
            nn.Linear(sum(self.widths[1:]), channels, **dd),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(channels, num_classes, **dd),
        )
        self.init_weights(needs_reset=False)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head[3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        x = run(self.stem, self.grad_checkpointing, x)
        x = x + run(self.stem_mixer, self.grad_checkpointing, x)
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean(dim=(2, 3, 4)))
        return self.head(torch.cat(means, dim=1))


_NAMES = [
    (r"^in_conv\.conv\.", "stem."),
    (r"^layer(\d)\.(\d+)\.mamba_layer\.", lambda m: f"stages.{int(m[1]) - 1}.mixer_layer."),
    (r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"\.bn([12])\.", r".norm\1."),
    (r"\.downsample\.0\.", ".skip.conv."),
    (r"\.downsample\.1\.", ".skip.norm."),
    (r"^att(\d)\.layer", lambda m: f"gates.{int(m[1]) - 1}.layer"),
    (r"^(gates\.\d)\.layer1\.", r"\1.reduce."),
    (r"^(gates\.\d)\.layer2\.", r"\1.expand."),
    (r"^conv([567])\.conv\.", lambda m: f"decoder.blocks.{int(m[1]) - 5}."),
    (r"^conv8\.conv\.", "head."),
    (r"^mlp\.", "head."),
    (r"^mamba_layer_stem\.", "stem_mixer."),
    (r"^(stem_mixer|stages\.\d\.mixer_layer)\.mamba\.", r"\1.mixer."),
]
_MIXER_LAYER_NAMES = [
    (r"^(stem_mixer|stages\.\d\.mixer_layer)\.nin\.", r"\1.before.0."),
    (r"^(stem_mixer|stages\.\d\.mixer_layer)\.norm\.", r"\1.before.1."),
    (r"^(stem_mixer|stages\.\d\.mixer_layer)\.nin2\.", r"\1.after.0."),
    (r"^(stem_mixer|stages\.\d\.mixer_layer)\.norm2\.", r"\1.after.1."),
]


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """An nnMamba state dict in this package's names.

    The reference lists the Mamba layer of a stage once for each block that uses it. The last one is in force there
    when a file is loaded, and here.
    """
    state_dict = unwrap(state_dict)
    if not any(name.startswith("in_conv.") for name in state_dict):
        return state_dict
    names = _NAMES + (_MIXER_LAYER_NAMES if any(".nin." in name for name in state_dict) else [])
    return stack_paths(rename(state_dict, names), mamba_parameters())


_SMALL = dict(channels=8)
_VARIANTS = {
    "nnmamba_seg": (NnMambaSeg, dict(num_classes=6)),
    "nnmamba_landmark": (NnMambaLandmark, dict(num_classes=6)),
    "nnmamba_cls": (NnMambaClassifier, dict(num_classes=1)),
    "nnmamba_seg_test": (NnMambaSeg, dict(num_classes=6, **_SMALL)),
    "nnmamba_landmark_test": (NnMambaLandmark, dict(num_classes=6, **_SMALL)),
    "nnmamba_cls_test": (NnMambaClassifier, dict(num_classes=1, **_SMALL)),
}


def _cfg(name: str) -> dict:
    known = facts("nnmamba", name.removesuffix("_test"))
    return network_cfg(known, num_classes=_VARIANTS[name][1]["num_classes"], first_conv="stem.0", classifier="head.3")


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg(name) for name in _VARIANTS})


def _create(name: str, pretrained: bool, **kwargs) -> DenseNetwork:
    model_cls, arguments = _VARIANTS[name]
    return create(model_cls, name, pretrained, checkpoint_filter_fn, **(arguments | kwargs))


@register_model
def nnmamba_seg(pretrained: bool = False, **kwargs) -> NnMambaSeg:
    """nnMamba for segmentation."""
    return _create("nnmamba_seg", pretrained, **kwargs)


@register_model
def nnmamba_landmark(pretrained: bool = False, **kwargs) -> NnMambaLandmark:
    """nnMamba for landmarks: one heat map each."""
    return _create("nnmamba_landmark", pretrained, **kwargs)


@register_model
def nnmamba_cls(pretrained: bool = False, **kwargs) -> NnMambaClassifier:
    """nnMamba for classification."""
    return _create("nnmamba_cls", pretrained, **kwargs)


@register_model
def nnmamba_seg_test(pretrained: bool = False, **kwargs) -> NnMambaSeg:
    """A small nnMamba for fast tests of segmentation."""
    return _create("nnmamba_seg_test", pretrained, **kwargs)


@register_model
def nnmamba_landmark_test(pretrained: bool = False, **kwargs) -> NnMambaLandmark:
    """A small nnMamba for fast tests of landmarks."""
    return _create("nnmamba_landmark_test", pretrained, **kwargs)


@register_model
def nnmamba_cls_test(pretrained: bool = False, **kwargs) -> NnMambaClassifier:
    """A small nnMamba for fast tests of classification."""
    return _create("nnmamba_cls_test", pretrained, **kwargs)
