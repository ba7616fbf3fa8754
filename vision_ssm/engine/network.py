"""What models around a whole network share: building it by config, names of its weights, the loss of its outputs."""

import difflib
from collections.abc import Callable, Mapping, Sequence

import timm
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoints import CheckpointError, convert_state_dict, load_checkpoint, read_state_dict, unwrap
from .config import ConfigError
from .weights import check_fits, keeping_heads

__all__ = ["build_network", "check_classes", "class_logits", "level_loss", "load_network", "network_state_dict"]


def build_network(config: Mapping) -> nn.Module:
    """The network that a config's `network` describes.

    Args:
        config: `name` of a model in timm, or `type`: a registered class or a dotted path
            ("monai.networks.nets.UNet"); and its arguments. `with_cp=True` recomputes activations in the backward
            pass (gradient checkpointing), for models that can.

    Raises:
        ConfigError: no such model; close names are given. Or it has no gradient checkpointing, or its outputs are no
            logits.
    """
    arguments = dict(config)
    recompute = arguments.pop("with_cp", False)
    network = _built(arguments)
    if getattr(network, "activation", None) is True:
        raise ConfigError("`network.activation` is set: expected logits, which the losses and the tests take")
    if recompute:
        if not hasattr(network, "set_grad_checkpointing"):
            raise ConfigError(f"`with_cp`: {type(network).__name__} has no gradient checkpointing")
        network.set_grad_checkpointing()
    return network


def _built(arguments: dict) -> nn.Module:
    if "type" in arguments:
        return MODELS.build(arguments)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or not timm.is_model(name):
        close = difflib.get_close_matches(str(name), timm.list_models(), n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"`network` needs the `name` of a model in timm or a `type`, got {name!r}{hint}")
    return timm.create_model(name, **arguments)


def load_network(network: nn.Module, source: str, keep_head: bool = False) -> None:
    """Load weights to start from into a network that a model is around.

    Args:
        network: any.
        source: file or URL, of this package or as published.
        keep_head: leave the heads as they are, for other classes (see `keeping_heads`).

    Raises:
        CheckpointError: the weights do not fit; where the heads alone do not, the message says how to start from the
            rest.
    """
    if not keep_head:
        try:
            load_checkpoint(network, source)
        except CheckpointError:
            check_fits(read_state_dict(source, network), network, source)  # says what the way on is
            raise
        return
    state_dict, _ = keeping_heads(read_state_dict(source, network), network)
    check_fits(state_dict, network, source)
    network.load_state_dict(state_dict)


def network_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A published checkpoint of `model.network` in the names of `model`; one of `model` unchanged."""
    own = model.state_dict()
    if any(name in own for name in state_dict):
        return dict(state_dict)
    converted = convert_state_dict(unwrap(state_dict), model.network)
    rest = {name: value for name, value in own.items() if not name.startswith("network.")}
    return rest | {f"network.{name}": value for name, value in converted.items()}


def check_classes(network: nn.Module, outputs: int, classes: Sequence[str]) -> None:
    """Compare a network's outputs, one for two classes, with the classes of a data set.

    Raises:
        ConfigError: there are more or fewer.
    """
    if max(outputs, 2) != len(classes):
        raise ConfigError(
            f"`model.network` is a {type(network).__name__} of {outputs} classes, the data has {len(classes)}: "
            f"{', '.join(classes)}"
        )


def class_logits(output: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """A network's output as logits of classes, of which a softmax makes probabilities.

    A network of one class, whose logit x is for a sigmoid, is one of two: (0, x), of which the softmax is the sigmoid
    of x.

    Args:
        output: (batch, channels, *size), or several, at full resolution first.

    Returns:
        Of each level (batch, classes, *size), of two classes where there was one channel.
    """
    levels = [output] if isinstance(output, Tensor) else output
    return [torch.cat([torch.zeros_like(one), one], dim=1) if one.shape[1] == 1 else one for one in levels]


def level_loss(
    loss: Callable[[Tensor, Tensor], Tensor], levels: Sequence[Tensor], label: Tensor, coarsest: bool = False
) -> Tensor:
    """The loss of a network's outputs, summed over its levels (deep supervision).

    Level i weighs 1/2^i and the last of several nothing, scaled to a sum of one: nnU-Net's
    (https://github.com/MIC-DKFZ/nnUNet, `nnUNetTrainer`).

    Args:
        loss: of logits in float32 and labels of their size.
        levels: logits (batch, classes, *size), at full resolution first.
        label: class ids (batch, 1, *size); brought to a level's size by nearest neighbours.
        coarsest: count the last of several too.
    """
    weights = [0.5**i for i in range(len(levels))]
    if len(levels) > 1 and not coarsest:
        weights[-1] = 0.0
    total = levels[0].new_zeros((), dtype=torch.float32)
    for logits, weight in zip(levels, weights, strict=True):
        if not weight:  # every parameter gets a gradient: data-parallel training waits for them
            total = total + 0.0 * logits.float().sum()
            continue
        size = logits.shape[2:]
        same = label.shape[2:] == size
        target = label if same else F.interpolate(label.float(), size, mode="nearest-exact").to(label.dtype)
        total = total + weight / sum(weights) * loss(logits.float(), target)
    return total
