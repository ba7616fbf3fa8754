"""Weights of files in a model: converted, compared, and without the heads of other classes."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..checkpoints import CheckpointError, check_state_dict, converting, unwrap

__all__ = ["check_fits", "converted", "keeping_heads"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def converted(content: Mapping, model: nn.Module, file: str) -> dict[str, Tensor]:
    """The weights of a checkpoint in the model's names.

    Raises:
        CheckpointError: they are not those of a known layout.
    """
    state_dict = unwrap(content, file)
    with converting(file, model):
        if convert := getattr(model, "convert_state_dict", None):
            state_dict = convert(state_dict)
        elif convert := getattr(getattr(model, "backbone", None), "convert_state_dict", None):
            state_dict = convert(state_dict, "backbone.")
    return state_dict


def check_fits(state_dict: Mapping[str, Tensor], model: nn.Module, file: str) -> None:
    """Compare names and shapes with a model's.

    Raises:
        CheckpointError: they differ; where the heads alone do, the message says how to start from the rest.
    """
    own = model.state_dict()
    try:
        check_state_dict(state_dict, own, model, file)
    except CheckpointError as error:
        rest, layers = keeping_heads(state_dict, model)
        fits = rest.keys() == own.keys() and all(rest[name].shape == own[name].shape for name in own)
        if not fits or not layers:
            raise
        way = f"`keep_head=True` (--keep-head) starts from all but {', '.join(layers[:3])}"
        raise CheckpointError(f"{error}; {way}") from error


def keeping_heads(state_dict: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict whose heads are replaced by the model's own.

    Heads are those that a network of this package names (`heads`). In any other network, and in the heads of
    MMSegmentation and MMDetection, they are the layers that differ in their number of outputs alone.

    Args:
        state_dict: in the model's names.
        model: with heads that are as they start.

    Returns:
        The state dict, and the names of the layers that stay as they are. What else does not fit is still there.
    """
    own = model.state_dict()
    layers: set[str] = set()
    for prefix, network in (("", model), ("network.", getattr(model, "network", None))):
        heads = getattr(network, "heads", ())
        if isinstance(heads, tuple) and heads and all(isinstance(head, str) for head in heads):
            named = tuple(prefix + head for head in heads)
            layers |= {name.rpartition(".")[0] for name in (*own, *state_dict) if name.startswith(named)}
    others: dict[str, list[bool]] = {}  # by layer, of each tensor that does not fit
    for name, value in own.items():
        if name in state_dict and state_dict[name].shape != value.shape:
            found = _other_outputs(model, name, state_dict[name].shape, value.shape)
            others.setdefault(name.rpartition(".")[0], []).append(found)
    layers |= {layer for layer, found in others.items() if all(found)}
    rest = {name: value for name, value in state_dict.items() if name.rpartition(".")[0] not in layers}
    kept = {name: value for name, value in own.items() if name.rpartition(".")[0] in layers}
    return rest | kept, sorted(layers)


def _other_outputs(model: nn.Module, name: str, one, other) -> bool:
    """Whether two shapes of a tensor differ in the outputs of its layer, and in nothing else."""
    if len(one) != len(other) or not one:
        return False
    layer, _, tensor = name.rpartition(".")
    transposed = tensor == "weight" and isinstance(model.get_submodule(layer), _TRANSPOSED)
    return [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b] == [int(transposed)]
