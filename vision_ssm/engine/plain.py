"""Checkpoints of tensors and plain values, from MMEngine's and back."""

from collections import OrderedDict, deque
from collections.abc import Mapping
from enum import Enum

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log

__all__ = ["plain", "revived"]

_HISTORY = "history"
_LEFT_OUT = object()


def plain(value, name: str = "checkpoint"):
    """`value` with nothing but tensors, numbers, strings and containers of them; histories become pairs of tensors.

    What has no such form (an object of a hook, say) is left out of its container, with a warning that names it: a
    training run is not stopped for it. A tuple keeps its length, with None in that place.
    """
    result = _plain(value, name)
    return None if result is _LEFT_OUT else result


def _plain(value, name: str):
    if value is None or isinstance(value, (bool, torch.Tensor)):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), name)
    if isinstance(value, Enum):
        return _plain(value.value, name)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # of a subclass, too
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), name)
    if isinstance(value, HistoryBuffer):
        history, count = value.data
        return {_HISTORY: torch.tensor(history), "count": torch.tensor(count), "max_length": value.max_length}
    if isinstance(value, Mapping):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        items = ((_plain(key, f"a key of {name}"), _plain(item, f"{name}.{key}")) for key, item in value.items())
        return kind((key, item) for key, item in items if key is not _LEFT_OUT and item is not _LEFT_OUT)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        items = [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return tuple(None if item is _LEFT_OUT else item for item in items)
        items = [item for item in items if item is not _LEFT_OUT]
        return set(items) if isinstance(value, (set, frozenset)) else items
    print_log(f"{name} is a {type(value).__name__}: left out of the checkpoint", logger="current", level=30)
    return _LEFT_OUT


def revived(content: Mapping) -> dict:
    """MMEngine's form of a checkpoint that was read: plain values, without a config that MMEngine would run.

    Histories that cannot be read (of a stock checkpoint) are left out.
    """
    checkpoint = dict(content)
    if isinstance(checkpoint.get("meta"), Mapping):
        checkpoint["meta"] = {key: value for key, value in checkpoint["meta"].items() if key != "config"}
    if isinstance(checkpoint.get("message_hub"), Mapping):
        checkpoint["message_hub"] = _revived_hub(checkpoint["message_hub"])
    if "param_schedulers" in checkpoint:  # a stock checkpoint's hold functions
        checkpoint["param_schedulers"] = plain(checkpoint["param_schedulers"], "param_schedulers")
    return checkpoint


def _revived_hub(message_hub: Mapping) -> dict:
    scalars = {
        name: HistoryBuffer(value[_HISTORY].numpy(), value["count"].numpy(), value["max_length"])
        for name, value in message_hub["log_scalars"].items()
        if isinstance(value, Mapping) and _HISTORY in value
    }
    known = (type(None), bool, int, float, str, list, tuple, dict, torch.Tensor)
    info = {name: value for name, value in message_hub["runtime_info"].items() if isinstance(value, known)}
    keys = {name: keep for name, keep in message_hub["resumed_keys"].items() if name in scalars or name in info}
    return dict(log_scalars=scalars, runtime_info=info, resumed_keys=keys)
