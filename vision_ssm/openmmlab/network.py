"""Whole networks in MMSegmentation: those of `vision_ssm.medical` for images, and networks of one's own."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine import ConfigDict
from mmseg.models import BaseSegmentor, EncoderDecoder
from mmseg.models.losses import accuracy
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..engine import (
    ConfigError,
    build_network,
    check_classes,
    class_logits,
    level_loss,
    load_network,
    network_state_dict,
)
from ..medical import DenseNetwork, load_encoder

__all__ = ["NetworkSegmentor"]


def _network(config: Mapping) -> nn.Module:
    network, name = build_network(config), config.get("name")
    if name is not None and (not isinstance(network, DenseNetwork) or network.dims != 2):
        raise ConfigError(
            f"`network` is {name}, which maps no image to a map of classes; backbones are for `TimmFeatures`"
        )
    if not isinstance(getattr(network, "num_classes", None), int):
        raise ConfigError(f"`network` is a {type(network).__name__} without `num_classes`: expected the number as such")
    return network


def _losses(config: Mapping | Sequence[Mapping], num_classes: int) -> nn.ModuleList:
    losses = nn.ModuleList(MODELS.build(one) for one in ([config] if isinstance(config, Mapping) else config))
    for loss in losses:
        if num_classes == 1 and getattr(loss, "use_sigmoid", False):
            raise ConfigError(
                f"`loss_decode` has a {type(loss).__name__} with use_sigmoid=True: set it False, a network of one "
                "class has a softmax over background and class here, which is the same"
            )
    return losses


@MODELS.register_module()
class NetworkSegmentor(EncoderDecoder):
    """`EncoderDecoder` with a whole network in the place of backbone and heads.

    A network of one class, whose logit is for a sigmoid, is one of two to everything else: losses, predictions and
    merged views see the logits (0, x) (see `class_logits`), so 0.5 is the threshold. Label maps
    hold 0 and 1. (MMSegmentation's `out_channels=1` would take the Dice loss of the background, and the sigmoid of a
    probability where views are merged.)

    Args:
        network: `name` of a 2D network in timm and its arguments (`num_classes`, `in_chans`, `deep_supervision`, ...);
            or `type`, a registered class or a dotted path, of a module with `num_classes`. It maps (batch, in_chans,
            height, width) to logits (batch, num_classes, height, width), or to several, at full resolution first.
            A module may say in `multiples` what height and width are to be multiples of.
        loss_decode: one of MMSegmentation's losses, or several. Each is the sum over the levels, with nnU-Net's
            weights: 1/2^i for level i and nothing for the coarsest of several, scaled to a sum of one. Labels of a
            level are the nearest ones.
        checkpoint: file or URL of weights to start from, of this package or as published. A run that is resumed or has
            `load_from` does not read it.
        keep_head: leave the head of the network as it is, for other classes than those of `checkpoint`.
        encoder: file or URL of a VMamba to start the encoder from instead (`vision_ssm.medical.load_encoder`).
        ignore_index: label of pixels that do not count.
        data_preprocessor: MMSegmentation's. In training its `size` or `size_divisor` makes the sides fit the network.
        test_cfg: `mode` "whole" (default), or "slide" with `crop_size` and `stride`. Images whose sides do not fit are
            padded at the right and at the bottom, with zeros after the normalisation, and the logits cropped; windows
            are padded to `crop_size` too, for networks that take one size alone.
        train_cfg: not used; MMSegmentation's tools set it.
        pretrained: another name of `checkpoint`.

    Raises:
        ConfigError: the network, a loss or `test_cfg` does not fit.
    """

    align_corners = False

    def __init__(
        self,
        network: Mapping,
        loss_decode: Mapping | Sequence[Mapping] = ConfigDict(type="CrossEntropyLoss", avg_non_ignore=True),
        checkpoint: str | None = None,
        encoder: str | None = None,
        ignore_index: int = 255,
        data_preprocessor: Mapping | None = None,
        test_cfg: Mapping | None = None,
        train_cfg: Mapping | None = None,
        pretrained: str | None = None,
        keep_head: bool = False,
    ):
        BaseSegmentor.__init__(self, data_preprocessor=data_preprocessor)
        self.network = _network(network)
        self.loss_decode = _losses(loss_decode, self.network.num_classes)
        self.checkpoint, self.encoder, self.keep_head = checkpoint or pretrained, encoder, keep_head
        if self.checkpoint and encoder:
            raise ConfigError("`checkpoint` and `encoder` are set: expected one of them to start from")
        if encoder and not hasattr(self.network, "vmamba_names"):
            raise ConfigError(f"`encoder` is set: {type(self.network).__name__} has none that is a VMamba's")
        self.num_classes = self.out_channels = max(self.network.num_classes, 2)
        self.ignore_index = ignore_index
        self.train_cfg, self.test_cfg = train_cfg, ConfigDict(test_cfg or dict(mode="whole"))
        mode = self.test_cfg.get("mode")
        if mode not in ("whole", "slide") or (mode == "slide" and not {"crop_size", "stride"} <= self.test_cfg.keys()):
            raise ConfigError(
                f"`test_cfg` is {dict(self.test_cfg)}: expected mode='whole', or mode='slide', crop_size and stride"
            )
        self.register_load_state_dict_pre_hook(self._convert_in_place)

    def expect_classes(self, classes: Sequence[str]) -> None:
        """Compare the network's outputs with a data set's classes.

        Raises:
            ConfigError: there are more or fewer.
        """
        check_classes(self.network, self.network.num_classes, classes)

    def extract_feat(self, inputs: Tensor) -> list[Tensor]:
        """The logits of every level, full resolution first; those of one class with the background's before them."""
        return class_logits(self.network(inputs))

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits (batch, classes, height, width) of images of any size that the network takes when it is padded."""
        height, width = inputs.shape[2:]
        return self.extract_feat(self._padded(inputs))[0][..., :height, :width]

    def _padded(self, inputs: Tensor) -> Tensor:
        multiples = getattr(self.network, "multiples", (1, 1))
        least = self.test_cfg.crop_size if self.test_cfg.mode == "slide" else (1, 1)
        bottom, right = (
            -(-max(side, small) // multiple) * multiple - side
            for side, small, multiple in zip(inputs.shape[2:], least, multiples, strict=True)
        )
        return F.pad(inputs, (0, right, 0, bottom))

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """The losses by name, and the percentage of pixels that are right at full resolution."""
        label = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).long()
        levels = self.extract_feat(inputs)
        losses: dict[str, Tensor] = {}
        for one in self.loss_decode:

            def of_level(logits: Tensor, target: Tensor, loss: nn.Module = one) -> Tensor:
                return loss(logits, target.squeeze(1), ignore_index=self.ignore_index)

            value = level_loss(of_level, levels, label)
            key = f"decode.{one.loss_name}"
            losses[key] = losses[key] + value if key in losses else value  # of two with one name the sum
        right = accuracy(levels[0], label.squeeze(1), ignore_index=self.ignore_index)
        return losses | {"decode.acc_seg": right}

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[Tensor]:
        return self.extract_feat(inputs)

    # Weights

    def init_weights(self) -> None:
        """Load the weights to start from; MMEngine calls it when training starts. Networks fill their own before."""
        if self.checkpoint:
            load_network(self.network, self.checkpoint, self.keep_head)
        elif self.encoder:
            load_encoder(self.network, self.encoder)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published checkpoint of the network in this model's names; one of this model unchanged."""
        return network_state_dict(state_dict, self)

    def _convert_in_place(self, module, state_dict, prefix, *_) -> None:
        """Published names through any door: `load_state_dict`, mmseg's `init_model`, MMEngine's loaders."""
        if prefix or not state_dict:
            return
        converted = self.convert_state_dict(state_dict)
        state_dict.clear()
        state_dict.update(converted)
