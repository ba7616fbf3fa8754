"""Checkpoints of tensors and plain values, from MMEngine's and back."""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log

__all__ = ["plain", "revived"]

_HISTORY = "history"


def plain(value, name: str = "checkpoint"):
    """`value` with nothing but tensors, numbers, strings and containers of them; histories become pairs of tensors.

    What has no such form (an object of a hook, say) is left out, with a warning that names it: a training run is not
    stopped for it.
    """
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, HistoryBuffer):
        history, count = value.data
        return {_HISTORY: torch.tensor(history), "count": torch.tensor(count), "max_length": value.max_length}
    if isinstance(value, Mapping):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((key, plain(item, f"{name}.{key}")) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)) or hasattr(value, "popleft"):
        items = [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    print_log(f"{name} is a {type(value).__name__}: not saved", logger="current", level=30)
    return None


def revived(message_hub: Mapping) -> dict:
    """MMEngine's form of a saved message hub; histories that cannot be read (of a stock checkpoint) are left out."""
    scalars = {
        name: HistoryBuffer(value[_HISTORY].numpy(), value["count"].numpy(), value["max_length"])
        for name, value in message_hub["log_scalars"].items()
        if isinstance(value, Mapping) and _HISTORY in value
    }
    known = (type(None), bool, int, float, str, list, tuple, dict, torch.Tensor)
    info = {name: value for name, value in message_hub["runtime_info"].items() if isinstance(value, known)}
    keys = {name: keep for name, keep in message_hub["resumed_keys"].items() if name in scalars or name in info}
    return dict(log_scalars=scalars, runtime_info=info, resumed_keys=keys)
