"""What models around a whole network share: building it by config, and published names of its weights."""

import difflib
from collections.abc import Mapping

import timm
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoints import convert_state_dict, unwrap
from .config import ConfigError

__all__ = ["build_network", "network_state_dict"]


def build_network(config: Mapping) -> nn.Module:
    """The network that a config's `network` describes.

    Args:
        config: `name` of a model in timm, or `type`: a registered class or a dotted path
            ("monai.networks.nets.UNet"); and its arguments.

    Raises:
        ConfigError: no such model; close names are given.
    """
    arguments = dict(config)
    if "type" in arguments:
        return MODELS.build(arguments)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or not timm.is_model(name):
        close = difflib.get_close_matches(str(name), timm.list_models(), n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"`network` needs the `name` of a model in timm or a `type`, got {name!r}{hint}")
    return timm.create_model(name, **arguments)


def network_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A published checkpoint of `model.network` in the names of `model`; one of `model` unchanged."""
    own = model.state_dict()
    if any(name in own for name in state_dict):
        return dict(state_dict)
    converted = convert_state_dict(unwrap(state_dict), model.network)
    rest = {name: value for name, value in own.items() if not name.startswith("network.")}
    return rest | {f"network.{name}": value for name, value in converted.items()}
