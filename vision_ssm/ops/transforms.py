"""Derivatives and function transforms that the kernels do not have.

A kernel gives outputs and their gradients. Everything beyond (`torch.func`'s transforms, forward mode, second
derivatives) runs the decomposed form of an operator: plain PyTorch operations, which know all of it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["differentiate", "for_kernels", "forward_mode", "under_transforms"]

_PLAIN = Tensor, torch.nn.Parameter
_library = torch.library.Library("vision_ssm", "FRAGMENT")


def under_transforms(operator: str, decomposed: Callable) -> None:
    """Run `decomposed`, which takes the operator's arguments, wherever a transform of `torch.func` is active."""
    _library.impl(operator, decomposed, "FuncTorchDynamicLayerFrontMode")
    _library.impl(operator, _refuse_old_batches, "Batched")


def _refuse_old_batches(*_):
    """PyTorch's first vmap, which `torch.autograd.grad(is_grads_batched=True)` still uses, knows too few operations."""
    raise RuntimeError(
        "the kernels take no batches of gradients: use `torch.func.vmap` or `torch.func.jacrev`, or run the forward "
        "pass in `vision_ssm.use_backend('chunked', decompose=True)`"
    )


def forward_mode() -> bool:
    """Whether tensors may carry tangents."""
    return forward_ad._current_level >= 0


def for_kernels(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors without their subclasses, whose methods may take other arguments than PyTorch's.

    Raises:
        RuntimeError: a tensor carries a tangent, which a kernel would lose.
    """
    if forward_mode() and any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(
            "the kernels have no forward-mode derivative: call the functions of vision_ssm instead of the raw "
            "operator, or run it in `vision_ssm.use_backend('chunked', decompose=True)`"
        )
    return [x if x is None or type(x) in _PLAIN else x.as_subclass(Tensor) for x in tensors]


def differentiate(
    function: Callable[..., Sequence[Tensor | None]], inputs: Sequence[Tensor | None], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of `inputs`, from those of the tensors that `function(*inputs)` returns; differentiable again.

    None where an input needs none.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # As views, so that an input that depends on another is cut off from it.
        inputs = [x if x is None else x.view_as(x) for x in inputs]
        pairs = zip(function(*inputs), gradients, strict=True)
        outputs, given = zip(*((y, g) for y, g in pairs if y is not None and y.requires_grad), strict=True)
    wanted = [i for i, x in enumerate(inputs) if x is not None and x.requires_grad]
    found = torch.autograd.grad(outputs, [inputs[i] for i in wanted], given, allow_unused=True, create_graph=again)
    result: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        result[i] = gradient
    return result
