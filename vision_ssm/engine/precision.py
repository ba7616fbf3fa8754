"""Mixed precision in bfloat16."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

__all__ = ["BFloat16OptimWrapper"]


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast, on CPUs too. Its range is float32's, so no loss is scaled."""

    @contextmanager
    def optim_context(self, model: torch.nn.Module):
        """Autocast around the forward pass."""
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield
