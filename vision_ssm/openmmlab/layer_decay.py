"""Layer-wise learning rates for any backbone that timm can group."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.models import group_parameters
from torch import nn

from .backbone import TimmFeatures

__all__ = ["LayerDecayConstructor"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name="TimmLayerDecay")
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Learning rates that shrink by a factor with each layer away from the output; no decay for norms and biases.

    In `paramwise_cfg`: `layer_decay` (1.0: the same rate for all), MMEngine's `custom_keys`, and anything else of its
    constructor for what lies outside the backbone. The layers are those of the model's `group_matcher`; the stem has
    the smallest rate, and what lies above the last block (norms of the outputs, necks, heads) the full one. Parameters
    of one dimension, and those that the model names in `no_weight_decay`, are not decayed unless the `decay_mult` of a
    custom key says so; a `lr_mult` comes on top of the layer's factor.

    Raises:
        ValueError: `layer_decay` is out of range, or the optimiser has no `lr`.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        # With nothing in it MMEngine would hand over the parameters in one group, past `add_params`.
        paramwise_cfg = dict(flat_decay_mult=0.0) | (paramwise_cfg or {})
        self.layer_decay = paramwise_cfg.pop("layer_decay", 1.0)
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` is {self.layer_decay}: expected more than 0 and at most 1")
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None:
            raise ValueError("`optimizer` has no `lr`: the layers have shares of it")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module=None) -> None:
        """One group a parameter, as MMEngine's."""
        if not isinstance(module, TimmFeatures):
            super().add_params(params, module, prefix, is_dcn_module)
            return
        model = module.model
        scales = self._scales(model)
        undecayed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
        custom = self.paramwise_cfg.get("custom_keys", {})
        keys = sorted(sorted(custom), key=len, reverse=True)  # MMEngine's order: the longest that fits
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            inner = name.removeprefix("model.")  # of the model, or still the name of a norm of the outputs
            options = next((custom[key] for key in keys if key in f"{prefix}.{name}"), {})
            lr = self.base_lr * scales.get(inner, 1.0) * options.get("lr_mult", 1.0)
            decay = options.get("decay_mult", 0.0 if parameter.ndim <= 1 or inner in undecayed else 1.0)
            params.append(dict(params=[parameter], lr=lr, weight_decay=(self.base_wd or 0.0) * decay))

    def _scales(self, model: nn.Module) -> dict[str, float]:
        """Factor of each parameter's learning rate."""
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        above = max(layers.values()) + 1
        return {name: self.layer_decay ** (above - layer) for name, layer in layers.items()}
