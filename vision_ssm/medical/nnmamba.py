"""nnMamba: residual convolutions and Mamba for volumes, to segment, to classify and to find landmarks.

Paper: Gong et al., nnMamba: 3D Biomedical Image Segmentation, Classification and Landmark Detection with State Space
Model, arXiv 2402.03526
Reference code: https://github.com/lhaof/nnMamba (no licence stated).

The reference holds several networks of the same names. These are `nnMambaSeg` of nnMamba.py, the `nnMambaSeg` of
nnunet/network_architecture/nnMamba.py that its nnU-Net trainers build, `nnMambaEncoder` of nnMamba4cls.py and
`nnMambaLand` of nnunet/training/network_training/nnMamba.py. Which of the first two the published results belong to is
not said.

The scores of the segmentation and landmark networks are never negative, as in the reference: the last layers are batch
norm and ReLU, with no linear layer behind them, and published weights were trained so.
"""

import torch
import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from ..cards import facts
from ..checkpoints import mamba_parameters, rename, stack_paths, unwrap
from ..layers import Mamba, SiameseMamba
from ._base import DenseNetwork, create, drop_heads, network_cfg, run
from ._conv import ConvLayers
from ._nnmamba import Decoder, MixerLayer, NnMambaEncoder, NnMambaUNet, PlainMixerLayer, double_conv, doubled
from ._tokens import TokenMixer

__all__ = ["NnMambaClassifier", "NnMambaLandmark", "NnMambaNNUNet", "NnMambaSeg"]


class NnMambaSeg(NnMambaUNet):
    """nnMamba for segmentation, with siamese Mamba layers.

    Args:
        in_chans, num_classes: channels of the volume and of the output.
        channels: of the stem; each of the three stages doubles them.
        blocks: residual blocks of each stage. All but the first of a stage share one siamese Mamba layer.

    Shapes: (batch, in_chans, depth, height, width) to (batch, num_classes, depth, height, width); each side is a
    multiple of 16. The scores are at least 0, see the module.
    """

    def __init__(
        self, in_chans: int = 1, num_classes: int = 6, channels: int = 32, blocks: int = 3, device=None, dtype=None
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            in_chans, num_classes, channels, blocks,
            lambda layers, width: MixerLayer(layers, width, SiameseMamba(width, **dd)), **dd,
        )  # fmt: skip


class NnMambaNNUNet(NnMambaUNet):
    """nnMamba as the reference's nnU-Net trainers build it.

    Args:
        in_chans, num_classes: channels of the volume and of the output.
        channels: of the stem; each of the three stages doubles them.
        blocks: residual blocks of each stage. All but the first of a stage share one Mamba layer.
        deep_supervision: return the outputs at strides 1, 2, 4 and 8, in this order.

    Shapes: (batch, in_chans, depth, height, width) to (batch, num_classes, depth, height, width), or the list of them;
    each side is a multiple of 16. The scores at full resolution end in batch norm and ReLU, so they are at least 0; the
    others are raw logits.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 4,
        channels: int = 32,
        blocks: int = 3,
        deep_supervision: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            in_chans, num_classes, channels, blocks,
            lambda layers, width: PlainMixerLayer(layers, width, Mamba(width, **dd)), deep_supervision, **dd,
        )  # fmt: skip


class NnMambaLandmark(NnMambaEncoder):
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
        self.decoder = Decoder(layers, self.widths)
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
        return run(self.head, self.grad_checkpointing, doubled(self.decoder(x, skips[:-1])[-1]))


class NnMambaClassifier(NnMambaEncoder):
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
    (r"^ds([123])_cls_conv\.", lambda m: f"decoder.heads.{3 - int(m[1])}."),
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
    when a file is loaded, and here. Heads that the model was made without are left out.
    """
    state_dict = unwrap(state_dict)
    if any(name.startswith("in_conv.") for name in state_dict):
        names = _NAMES + (_MIXER_LAYER_NAMES if any(".nin." in name for name in state_dict) else [])
        state_dict = stack_paths(rename(state_dict, names), mamba_parameters())
    return drop_heads(state_dict, model)


_SMALL = dict(channels=8)
_VARIANTS = {
    "nnmamba_seg": (NnMambaSeg, dict(num_classes=6)),
    "nnmamba_nnunet": (NnMambaNNUNet, dict(in_chans=4, num_classes=4)),
    "nnmamba_landmark": (NnMambaLandmark, dict(num_classes=6)),
    "nnmamba_cls": (NnMambaClassifier, dict(num_classes=1)),
    "nnmamba_seg_test": (NnMambaSeg, dict(num_classes=6, **_SMALL)),
    "nnmamba_nnunet_test": (NnMambaNNUNet, dict(num_classes=4, **_SMALL)),
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
def nnmamba_nnunet(pretrained: bool = False, **kwargs) -> NnMambaNNUNet:
    """nnMamba of the reference's nnU-Net trainers, arguments of BraTS: 4 channels, 4 classes."""
    return _create("nnmamba_nnunet", pretrained, **kwargs)


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
def nnmamba_nnunet_test(pretrained: bool = False, **kwargs) -> NnMambaNNUNet:
    """A small nnMamba of the nnU-Net trainers for fast tests."""
    return _create("nnmamba_nnunet_test", pretrained, **kwargs)


@register_model
def nnmamba_landmark_test(pretrained: bool = False, **kwargs) -> NnMambaLandmark:
    """A small nnMamba for fast tests of landmarks."""
    return _create("nnmamba_landmark_test", pretrained, **kwargs)


@register_model
def nnmamba_cls_test(pretrained: bool = False, **kwargs) -> NnMambaClassifier:
    """A small nnMamba for fast tests of classification."""
    return _create("nnmamba_cls_test", pretrained, **kwargs)
