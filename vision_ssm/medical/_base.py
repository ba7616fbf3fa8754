"""What every network of this folder does alike: options that timm and nnU-Net set, building, checks of the input."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn as nn

from ..models._base import Network, build, pretrained_cfg, recomputed

__all__ = ["DenseNetwork", "SupervisedDecoder", "check_dims", "check_sides", "create", "network_cfg"]


class DenseNetwork(Network):
    """Base of networks that map an image or volume to a map of classes.

    Attributes:
        in_chans, num_classes: channels of the input and of the output.
        dims: 2 for images, (batch, channels, height, width); 3 for volumes, (batch, channels, depth, height, width).
        grad_checkpointing: recompute activations in the backward pass.
    """

    in_chans: int
    num_classes: int
    dims: int
    num_features = 0  # of a pooled feature vector, which timm asks for; there is none
    grad_checkpointing = False

    def nominal_sides(self) -> tuple[int, ...] | None:
        """Sides of an input that suits the arguments of the network; None if its family's usual ones do."""
        return None

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block in the backward pass: less memory, more time."""
        for module in self.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable

    def _init_layer(self, module: nn.Module, name: str) -> None:
        """nnU-Net's start: convolutions from He's normal distribution for a slope of 0.01, their biases 0."""
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SupervisedDecoder(nn.Module):
    """Base of decoders with one head a level, deepest first; heads that the decoder was made without are identities.

    Attributes:
        deep_supervision: return the logits of every level, full resolution first. nnU-Net switches it at run time.
    """

    heads: nn.ModuleList
    _deep_supervision: bool

    @property
    def deep_supervision(self) -> bool:
        """Whether the logits of every level are returned."""
        return self._deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enable: bool) -> None:
        if enable and isinstance(self.heads[0], nn.Identity) and len(self.heads) > 1:
            raise ValueError("the network was made without deep supervision: pass `deep_supervision=True` to make it")
        self._deep_supervision = enable


def drop_heads(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Without the heads of deep supervision that the model was made without."""
    own = model.state_dict()
    return {k: v for k, v in state_dict.items() if not k.startswith("decoder.heads.") or k in own}


def run(module: nn.Module, grad_checkpointing: bool, *inputs: torch.Tensor) -> torch.Tensor:
    """`module(*inputs)`, recomputed in the backward pass if asked for."""
    return recomputed(module, *inputs) if grad_checkpointing and torch.is_grad_enabled() else module(*inputs)


def check_dims(x: torch.Tensor, model: DenseNetwork) -> None:
    """Raise ValueError unless `x` is a batch of images (volumes) with the model's channels."""
    axes = "height, width" if model.dims == 2 else "depth, height, width"
    if x.dim() != model.dims + 2 or x.shape[1] != model.in_chans:
        raise ValueError(f"input of shape {tuple(x.shape)}: expected (batch, {model.in_chans}, {axes})")


def check_sides(x: torch.Tensor, multiples: Sequence[int]) -> None:
    """Raise ValueError unless each side of the image (volume) is a multiple of the given number."""
    sides = x.shape[2:]
    for side, multiple in zip(sides, multiples, strict=True):
        if side % multiple or side == 0:
            raise ValueError(
                f"input of {tuple(sides)}: expected multiples of {tuple(multiples)}; pad it, or use sliding windows"
            )


def network_cfg(facts: dict, **kwargs) -> dict:
    """A timm config from a network's facts. Volumes have no `input_size`, which timm knows for images alone."""
    return pretrained_cfg(facts, **(dict(input_size=None, crop_pct=None, interpolation="") | kwargs))


def create(model_cls: type[DenseNetwork], name: str, pretrained: bool, filter_fn: Callable, **kwargs) -> DenseNetwork:
    """`timm.create_model` for a network; it has no feature pyramid to offer.

    Raises:
        ValueError: `features_only` was asked for, or no channels or classes.
    """
    for count in ("in_chans", "num_classes"):
        if kwargs.get(count) is not None and kwargs[count] < 1:
            raise ValueError(f"`{count}` is {kwargs[count]}: expected at least 1")
    if kwargs.get("features_only"):
        raise ValueError(f"{name} is no backbone: `features_only` is for those of `vision_ssm.models`")
    given = kwargs.get("pretrained_cfg")
    if isinstance(given, Mapping) and len(given.get("input_size") or ()) != 3:  # a volume's, from the Hub
        kwargs["pretrained_cfg"] = {**given, "input_size": None}
    model = build(model_cls, name, pretrained, {}, filter_fn, **kwargs)
    usual = model.pretrained_cfg.get("input_size", (0, *[96] * model.dims))[1:]
    model.pretrained_cfg["input_size"] = (
        model.in_chans,
        *(model.nominal_sides() or usual),
    )  # timm writes it to the Hub
    return model
