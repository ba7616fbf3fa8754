"""What every network of the package does alike for timm: initialisation, weight decay, building, loading."""

import inspect
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
import torch.nn as nn
from timm.models import build_model_with_cfg, checkpoint, resolve_pretrained_cfg
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoints import load_into
from ..ops.backends import same_backend
from ._positions import note_grid, refit

__all__ = ["Backbone", "Network", "build", "check_smallest", "pretrained_cfg", "recomputed"]


class Network(nn.Module):
    """Base of all registered models.

    A family says how its layers start in `_init_layer`, which is called with every module; what it leaves alone starts
    as PyTorch's layers and the token mixers do by themselves.
    """

    # Ends of parameter names without weight decay, beyond the one-dimensional ones that timm excludes by itself.
    no_decay = (".A_log", ".D", ".dt_bias", "conv1d.bias")
    # Beginnings of the names of what maps features to classes: it is left out where the classes differ.
    heads: tuple[str, ...] = ("head.",)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Fill every parameter with its initial value; `needs_reset` also those that PyTorch's layers own."""
        for module in self.modules():
            if needs_reset and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for name, module in self.named_modules():
            self._init_layer(module, name)

    def _init_layer(self, module: nn.Module, name: str) -> None:
        pass

    @torch.jit.ignore
    def table_grid(self) -> tuple[int, ...] | None:
        """The grid that the position tables are for; None if there are none."""
        return None

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_grid(destination, prefix, self.table_grid())

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self.fit_tables(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.jit.ignore
    def fit_tables(self, state_dict: MutableMapping[str, torch.Tensor], prefix: str = "") -> None:
        """Bring the position tables of a state dict to the model's grid, in place; its names stand behind `prefix`.

        Raises:
            CheckpointError: the tables' grid is another one and they cannot be resized, or it cannot be known.
        """
        refit(self, state_dict, prefix)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters to leave out of weight decay."""
        return {name for name, _ in self.named_parameters() if name.endswith(self.no_decay)}

    @torch.jit.ignore
    def load_pretrained(self, path: str, prefix: str = "") -> None:
        """Load a published checkpoint file; timm calls it for `pretrained=True`."""
        load_into(self, path)


class Backbone(Network):
    """Base of the classification models."""

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def check_smallest(x: torch.Tensor, smallest: int) -> None:
    """Raise ValueError for images that are smaller than a patch, which leave a map without pixels."""
    if smallest > 1 and (x.shape[2] < smallest or x.shape[3] < smallest):
        raise ValueError(f"the image is {x.shape[2]}x{x.shape[3]} pixels: expected at least {smallest} a side")


def recomputed(module: nn.Module, *inputs: torch.Tensor | nn.Module | int | None) -> torch.Tensor:
    """`module(*inputs)`, computed again in the backward pass: batch norms do not count the batch twice there, and the
    operators run on the backend of the forward pass."""
    parts = [m for part in (module, *inputs) if isinstance(part, nn.Module) for m in part.modules()]
    norms = [m for m in parts if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    if torch.compiler.is_compiling():
        return checkpoint(module, *inputs)
    backend = same_backend()
    if not (norms or backend):
        return checkpoint(module, *inputs)
    return checkpoint(module, *inputs, context_fn=lambda: (nullcontext(), _Again(partial(_again, norms, backend))))


class _Again(AbstractContextManager):
    """A context that is made anew each time that it is entered: a graph may be run backward more than once."""

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self.make = make

    def __enter__(self) -> None:
        self.inside = self.make()
        self.inside.__enter__()

    def __exit__(self, *error) -> bool | None:
        return self.inside.__exit__(*error)


@contextmanager
def _again(norms: Sequence[_BatchNorm], backend: Callable[[], AbstractContextManager] | None) -> Iterator[None]:
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with backend() if backend else nullcontext():
            yield
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(counted)


def pretrained_cfg(facts: dict, **kwargs) -> dict:
    """A timm pretrained config from a variant's facts (`model_cards/`): source, licence, preprocessing, papers."""
    cfg = dict(
        url=facts.get("checkpoint_url") or "",
        custom_load=bool(facts.get("checkpoint_url")),
        license=facts["license"].lower(),
        origin_url=f"https://github.com/{facts['reference']}",
        paper_ids=f"arXiv:{facts['arxiv']}",
        paper_name=facts["paper"],
        num_classes=1000,
        input_size=(3, 224, 224),
        crop_pct=0.875,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return cfg | kwargs


def build(model_cls: type[Backbone], name: str, pretrained: bool, feature_cfg: dict, filter_fn, **kwargs) -> nn.Module:
    """`timm.models.build_model_with_cfg`; timm writes into `feature_cfg`, so it gets a copy.

    What the class was called with stays in the model's `variant`. An address of weights that this package reads
    (`custom_load`) reaches `load_pretrained` as it is, by timm's `file`: timm's own downloads are cached by the last
    part of the address.
    """
    cfg = resolve_pretrained_cfg(name, kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None))
    elsewhere = cfg.source or cfg.file or cfg.state_dict or cfg.hf_hub_id or kwargs.get("cache_dir")
    if pretrained and cfg.custom_load and cfg.url and not elsewhere:
        cfg = replace(cfg, file=cfg.url)
    model = build_model_with_cfg(
        model_cls,
        name,
        pretrained,
        pretrained_cfg=cfg,
        pretrained_filter_fn=filter_fn,
        feature_cfg=dict(feature_cfg),
        **kwargs,
    )
    model.variant = {key: value for key, value in kwargs.items() if key in inspect.signature(model_cls).parameters}
    return model
