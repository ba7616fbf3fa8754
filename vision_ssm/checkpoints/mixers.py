"""Names of published token mixers, in which many reference repositories agree, and ours."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["VSS_NAMES", "fit_shapes", "mamba_parameters", "stack_paths"]

# A block of VMamba's first release (`ln_1`, `self_attention`), which most medical networks copied.
VSS_NAMES = [
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.x_proj_weight$", ".mixer.ssm.x_proj"),
    (r"\.self_attention\.dt_projs_weight$", ".mixer.ssm.dt_proj"),
    (r"\.self_attention\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
    (r"\.self_attention\.A_logs$", ".mixer.ssm.A_log"),
    (r"\.self_attention\.Ds$", ".mixer.ssm.D"),
    (r"\.self_attention\.out_norm\.", ".mixer.out_norm.norm."),
    (r"\.self_attention\.", ".mixer."),
]


def mamba_parameters(directions: Sequence[str] = ("",), prefixes: Sequence[str] = ("",)) -> dict[str, tuple[str, ...]]:
    """Our parameters of a Mamba mixer, each with mamba_ssm's names of them by direction.

    Args:
        directions: suffixes of the names: "" for the first, "_b" for the backward one, ...
        prefixes: beginnings of the names, where each direction is a mixer of its own.
    """
    names = {
        "conv1d.weight": "conv1d{}.weight",
        "conv1d.bias": "conv1d{}.bias",
        "ssm.x_proj": "x_proj{}.weight",
        "ssm.dt_proj": "dt_proj{}.weight",
        "ssm.dt_bias": "dt_proj{}.bias",
        "ssm.A_log": "A{}_log",
        "ssm.D": "D{}",
    }
    return {
        our: tuple(prefix + name.format(suffix) for prefix in prefixes for suffix in directions)
        for our, name in names.items()
    }


def stack_paths(state_dict: Mapping[str, Tensor], parameters: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Per-path parameters of mixers stacked into one; {ours: the reference's names in order}, absent ones left out."""
    out = dict(state_dict)
    for name in state_dict:
        prefix, found, _ = name.partition(".mixer.")
        first = name[len(prefix) + len(found) :]
        for ours, theirs in parameters.items():
            if found and first == theirs[0]:
                values = [
                    out.pop(f"{prefix}.mixer.{part}") for part in theirs if f"{prefix}.mixer.{part}" in state_dict
                ]
                value = torch.stack(values)
                out[f"{prefix}.mixer.{ours}"] = value.squeeze(2) if ours == "conv1d.weight" else value
    return out


def fit_shapes(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of another shape but as many entries reshaped to the model's: linear layers stored as 1x1 convolutions,
    and the parameters of several paths stored as one."""
    out = dict(state_dict)
    for name, value in state_dict.items():
        like = own.get(name)
        if like is not None and value.shape != like.shape and value.numel() == like.numel():
            out[name] = value.reshape(like.shape)
    return out
