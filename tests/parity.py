"""Weights, inputs and digests that a golden file is made of.

A golden file (`golden/*.json`) says what a published implementation computes on a CPU in float32 when its parameters
are filled by `fill_value` and its input by `make_input`. To hold a model against one: make the state dict in the
reference's names (`make_state_dict`), load it as a checkpoint, run the model on `make_input` of each of the "inputs",
and `compare` with the "outputs".

The rules need NumPy alone, so that any framework can follow them.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

__all__ = ["GOLDEN", "compare", "fill_value", "load", "make_input", "make_state_dict"]

GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> dict:
    """The content of a golden file."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def fill_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of one floating-point parameter or buffer, from its name and shape alone."""
    shape, leaf = tuple(shape), name.rsplit(".", 1)[-1]
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.float32)
    if leaf == "running_mean":
        return 0.1 * noise
    if leaf == "running_var":
        return 1.0 + 0.1 * np.abs(noise)
    if "A_log" in leaf or leaf in ("A_b_log", "A_c_log", "A_s_log"):
        steps = np.log(np.arange(1, (shape[-1] if shape else 1) + 1, dtype=np.float32))
        return (steps + 0.1 * noise).astype(np.float32)
    if leaf in ("D", "Ds", "D_b", "D_c", "D_s"):
        return 1.0 + 0.1 * noise
    if leaf in ("dt_projs_bias", "dt_bias") or (leaf == "bias" and "dt_proj" in name):
        return (-3.5 + noise.clip(-1.5, 1.5)).astype(np.float32)
    if any(key in name for key in ("pos_embed", "cls_token", "temporal_pos", "bias_table")):
        return 0.5 * noise
    if len(shape) <= 1:
        return (0.05 * noise if "bias" in leaf else 1.0 + 0.1 * noise).astype(np.float32)
    return (noise / math.sqrt(math.prod(shape[1:]))).astype(np.float32)


def make_input(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A standard normal float32 input."""
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def make_state_dict(entry: dict) -> dict[str, np.ndarray]:
    """The reference's state dict from a golden file's content.

    "override" sets every parameter whose name ends in its suffix to one value, after the fill; "multiply" scales every
    parameter with that last name; "tied" lists names of one tensor each, of which the last one's value is in force.
    """
    state = {name: fill_value(name, shape) for name, shape in entry["state_dict"].items()}
    if override := entry.get("override"):
        for name in state:
            if name.endswith(override["suffix"]):
                state[name] = np.full_like(state[name], override["value"])
    for leaf, factor in entry.get("multiply", {}).items():
        for name in state:
            if name.rsplit(".", 1)[-1] == leaf:
                state[name] = state[name] * np.float32(factor)
    for names in entry.get("tied", ()):
        for name in names:
            state[name] = state[names[-1]]
    return state


def compare(array: np.ndarray, expected: dict) -> float:
    """||ours - expected|| / ||expected|| over the evenly spaced values that the golden file keeps."""
    array = np.asarray(array, np.float32)
    assert list(array.shape) == expected["shape"]
    values = np.array(expected["values"])
    index = np.linspace(0, array.size - 1, len(values)).astype(np.int64)
    return float(np.linalg.norm(array.reshape(-1)[index] - values) / np.linalg.norm(values))
