"""What every network of this folder does alike: options that timm and nnU-Net set, building, checks of the input."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn as nn

from ..models._base import Network, build, pretrained_cfg, recomputed

__all__ = ["DenseNetwork", "SupervisedDecoder", "create", "drop_heads", "network_cfg", "run"]


class DenseNetwork(Network):
    """Base of networks that map an image or volume to a map of classes.

    Attributes:
        in_chans, num_classes: channels of the input and of the output.
        dims: 2 for images, (batch, channels, height, width); 3 for volumes, (batch, channels, depth, height, width).
        multiples: what each side of an input is a multiple of.
        grad_checkpointing: recompute activations in the backward pass.
    """

    in_chans: int
    num_classes: int
    dims: int
    multiples: Sequence[int]
    num_features = 0  # of a pooled feature vector, which timm asks for; there is none
    grad_checkpointing = False

    def check_input(self, x: torch.Tensor) -> None:
        """Raise ValueError unless `x` is a batch of images (volumes) with the network's channels and sides."""
        axes = "height, width" if self.dims == 2 else "depth, height, width"
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_chans:
            raise ValueError(f"input of shape {tuple(x.shape)}: expected (batch, {self.in_chans}, {axes})")
        sides = tuple(x.shape[2:])
        if any(side % multiple or side == 0 for side, multiple in zip(sides, self.multiples, strict=True)):
            raise ValueError(
                f"input of {sides}: expected multiples of {tuple(self.multiples)}; pad it, or use sliding windows"
            )

    def nominal_sides(self) -> tuple[int, ...] | None:
        """Sides of an input that suits the arguments of the network; None if its family's usual ones do."""
        return None

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block in the backward pass: less memory, more time."""
        for module in self.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable


class SupervisedDecoder(nn.Module):
    """Base of decoders with one head a level, deepest first; heads that the decoder was made without are identities.

    Attributes:
        deep_supervision: return the logits of every level, full resolution first. nnU-Net switches it at run time.
    """

    heads: nn.ModuleList
    _deep_supervision: bool

    def make_heads(self, widths: Sequence[int], make: Callable[[int], nn.Module], deep_supervision: bool) -> None:
        """Heads for maps of these widths, each made by `make`; without deep supervision the last one alone."""
        last = len(widths) - 1
        self.heads = nn.ModuleList(
            make(width) if deep_supervision or level == last else nn.Identity() for level, width in enumerate(widths)
        )
        self._deep_supervision = deep_supervision

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
    sides = model.nominal_sides() or usual
    model.pretrained_cfg["input_size"] = (model.in_chans, *sides)  # timm writes it to the Hub
    return model
