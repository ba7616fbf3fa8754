"""A segmentation network as MMEngine trains and tests it."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from mmengine import Config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..engine import ConfigError, build_network, check_classes, class_logits, load_network, network_state_dict
from ..medical import DenseNetwork
from .case import Case, label_dtype
from .flips import trained_flips
from .loss import DeepSupervision
from .windows import SlidingWindows

__all__ = ["VolumeSegmentor"]


def _check_window(network: nn.Module, config: Mapping, roi_size: Sequence[int]) -> None:
    """Refuse windows that a network of this package does not take; by shape alone, on a copy without memory."""
    if not isinstance(network, DenseNetwork):
        return
    if network.dims != len(roi_size):
        raise ConfigError(f"`inference.roi_size` is {tuple(roi_size)}: expected {network.dims} sizes for the network")
    if min(roi_size) < 1:
        return
    with torch.device("meta"), torch.no_grad():
        try:
            build_network(config).eval()(torch.empty(1, network.in_chans, *roi_size))
        except ValueError as error:
            raise ConfigError(f"`inference.roi_size` is {tuple(roi_size)}: {error}") from error


@MODELS.register_module()
class VolumeSegmentor(BaseModel):
    """Segmentation of volumes, of their slices, or of pictures, into classes of which 0 is the background.

    Args:
        network: `name` of a model in timm, or `type`: a registered class or a dotted path
            ("monai.networks.nets.UNet"); and its arguments. It maps (batch, channels, *size) to logits
            (batch, classes, *size); in training it may return several, at full resolution first. One of one class
            has a sigmoid's logit (see `class_logits`), and label maps of 0 and 1.
        inference: arguments of `SlidingWindows`.
        loss: arguments of `DeepSupervision`.
        checkpoint: file or URL of weights to start from, of this package or as published. A run that is resumed or has
            `load_from` does not read it.
        keep_head: leave the head of the network as it is, for other classes than those of `checkpoint`.
        channels_last: keep convolutions and maps channels-last in memory: faster training where the channels are few,
            and on GPUs; the norms of such maps are less exact on CPUs (1e-4, relative).
        data_preprocessor: MMEngine's.

    Raises:
        ConfigError: there is no such network, its outputs are no logits, or not those of the data's classes; or it
            does not take the windows of the tests. Those of another size than the windows, or of other channels than
            the images, are refused when the first ones are seen, before the first step.
    """

    def __init__(
        self,
        network: Mapping,
        inference: Mapping,
        loss: Mapping | None = None,
        checkpoint: str | None = None,
        channels_last: bool = False,
        data_preprocessor: Mapping | None = None,
        keep_head: bool = False,
    ):
        super().__init__(data_preprocessor=data_preprocessor)
        self.network = build_network(network)
        self.windows = SlidingWindows(**inference)
        _check_window(self.network, network, self.windows.roi_size)
        self.loss = DeepSupervision(**(loss or {}))
        self.checkpoint, self.keep_head, self.channels_last = checkpoint, keep_head, channels_last
        self.windows.multiples = getattr(self.network, "multiples", None)
        self._classes: set[tuple[str, ...]] = set()  # of the data sets of a run
        self._tried = False  # a window of the tests, before the first step
        if channels_last:
            for parameter in self.network.parameters():
                parameter.data = self._in_memory(parameter.data)

    @staticmethod
    def tta_options(cfg: Config) -> dict:
        """What `--tta` changes in a config that has no `tta_options`: the flips that training shows are averaged over.

        Flips that `inference` names stay as they are.
        """
        inference = cfg.model.inference
        if inference.get("flips"):
            return {}
        loader = cfg.get("train_dataloader") or {}
        flips = trained_flips(loader.get("dataset") or {}, len(inference.roi_size))
        shown = ", ".join(str(view) for view in flips[1:]) or "none: the training flips nothing"
        print_log(f"--tta: flipped views of the axes {shown}", logger="current")
        return dict(model=dict(inference=dict(flips=flips)))

    def _in_memory(self, x: Tensor) -> Tensor:
        """Channels-last, where that is asked for and means something."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[x.ndim]) if self.channels_last and x.ndim in formats else x

    def expect_classes(self, classes: Sequence[str]) -> None:
        """Compare the network's outputs with a data set's classes: now if it has `num_classes`, else when it runs.

        Raises:
            ConfigError: there are more or fewer.
        """
        self._classes.add(tuple(classes))
        known = getattr(self.network, "num_classes", None)
        if isinstance(known, int):
            self._compare(known)

    def _compare(self, outputs: int) -> None:
        for classes in self._classes:
            check_classes(self.network, outputs, classes)

    def _logits(self, image: Tensor) -> list[Tensor]:
        name, expected = type(self.network).__name__, getattr(self.network, "in_chans", None)
        if isinstance(expected, int) and expected != image.shape[1]:
            raise ConfigError(
                f"`model.network` is a {name} of in_chans={expected}, the images have {image.shape[1]} channels"
            )
        output = self.network(self._in_memory(image))
        if isinstance(output, Tensor):  # MONAI's DynUNet stacks its levels, (batch, levels, classes, *size)
            levels = output.unbind(1) if output.ndim > image.ndim else [output]
        else:
            levels = output
        self._compare(levels[0].shape[1])
        if levels[0].shape[2:] != image.shape[2:]:
            seen, given = ("x".join(map(str, one.shape[2:])) for one in (image, levels[0]))
            raise ConfigError(
                f"`model.network` is a {name} whose logits of a window of {seen} are {given}: expected the window's "
                "size, at full resolution first"
            )
        return class_logits(levels)

    @torch.no_grad()
    def _try_window(self, image: Tensor) -> None:
        """See a part of an image as tests do, once, so that what fails there fails before the first step."""
        if self._tried or image.ndim - 2 != len(self.windows.roi_size):
            return
        self._tried = True
        sides = self.windows.window(image.shape[2:])
        was_training, window = self.training, image[(slice(1), slice(None), *map(slice, sides))]
        self.eval()
        try:
            self._probabilities(window)
        finally:
            self.train(was_training)
            torch.clear_autocast_cache()  # of weights that were cast without gradients

    def _probabilities(self, image: Tensor) -> Tensor:
        try:
            return self.windows(image, self._logits)
        except (ConfigError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError) as error:  # of shapes: those of this package are ValueErrors
            seen = "x".join(map(str, image.shape[2:]))
            raise ConfigError(
                f"`model.network` is a {type(self.network).__name__} that does not take windows of "
                f"{self.windows.roi_size} (`inference.roi_size`) of images of {image.shape[1]} channels and {seen} "
                f"voxels: {error}"
            ) from error

    def init_weights(self) -> None:
        """Load the weights to start from; MMEngine calls it when training starts. Networks fill their own before."""
        if self.checkpoint is not None:
            load_network(self.network, self.checkpoint, self.keep_head)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published checkpoint of the network in this model's names; one of this model unchanged."""
        return network_state_dict(state_dict, self)

    def forward(
        self,
        image: Tensor | Sequence[Tensor],
        label: Tensor | Sequence[Tensor] | None = None,
        case: Sequence[Case] = (),
        mode: Literal["tensor", "loss", "predict"] = "tensor",
    ) -> Tensor | Sequence[Tensor] | dict[str, Tensor] | list[dict]:
        """Train on, or segment, a batch.

        Args:
            image: (batch, channels, *size); or a list, which "loss" and "tensor" join, of such and of single ones
                (channels, *size).
            label: class ids (batch, 1, *size), -1 where nothing is counted, for "loss"; or a list likewise.
            case: of each image, for "predict".
            mode: "loss" for the training loss, "predict" for class ids, "tensor" for the network's output.

        Returns:
            The network's output; or `dict(loss=...)`; or for each image `labels` (*size), of `label_dtype`, and its
            `case`.
        """
        if mode == "predict":
            images = image if isinstance(image, (list, tuple)) else image.split(1)
            return [self._segment(one, case[i] if case else None) for i, one in enumerate(images)]
        image = self._joined(image)
        if mode == "tensor":
            return self.network(self._in_memory(image))
        label = self._joined(label)
        self._try_window(image)
        return dict(loss=self.loss(self._logits(image), label))

    def _joined(self, samples: Tensor | Sequence[Tensor]) -> Tensor:
        """One batch of samples, each one image or several crops of one."""
        if isinstance(samples, Tensor):
            return samples
        single = len(self.windows.roi_size) + 1  # dimensions of an image with its channels
        return torch.cat([sample[None] if sample.ndim == single else sample for sample in samples])

    @torch.no_grad()
    def _segment(self, image: Tensor, case: Case | None) -> dict:
        if not image.numel():  # cut to its foreground, and there is none
            return dict(labels=image.new_zeros(image.shape[2:], dtype=torch.uint8), case=case)
        probabilities = self._probabilities(image)
        return dict(labels=probabilities.argmax(1)[0].to(label_dtype(probabilities.shape[1])), case=case)
