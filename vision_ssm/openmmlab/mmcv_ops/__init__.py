"""The operators of mmcv's compiled extension, through torchvision and plain PyTorch.

MMSegmentation 1.2.2 and MMDetection 3.3.0 import `mmcv.ops`, and with it the extension `mmcv._ext`, for which there
are no wheels after PyTorch 2.1. `mmcv-lite` has the same Python code without it. `install` puts a module in its place.

Each function here has the signature of its namesake in mmcv 2.1.0 and, like it, fills tensors that the caller
allocated. All run wherever PyTorch and torchvision do, and compute half precision in float32.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType

import torchvision

from . import attention, boxes, convolutions, losses, regions

__all__ = ["install"]

_NAME = "mmcv._ext"


def get_compiler_version() -> str:
    """For reports of the environment."""
    return f"not compiled, torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """For reports of the environment."""
    return "not compiled"


def _missing(name: str) -> Callable:
    """The module's `__getattr__`: mmcv asks for every operator when it is imported, and calls few of them."""
    if name.startswith("__"):
        raise AttributeError(name)

    def operator(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"mmcv's operator {name} needs the compiled mmcv, which is not installed")

    operator.__name__ = name
    return operator


class _Bridge(Loader):
    """Fills the module. MMEngine takes a module without a loader for a missing one, and then ignores its layers."""

    def exec_module(self, module: ModuleType) -> None:
        for source in (boxes, regions, convolutions, losses, attention):
            vars(module).update({name: getattr(source, name) for name in source.__all__})
        module.get_compiler_version = get_compiler_version
        module.get_compiling_cuda_version = get_compiling_cuda_version
        module.__getattr__ = _missing


def install() -> bool:
    """Put the bridge at `mmcv._ext`, unless a compiled mmcv is there. True where the bridge is in use."""
    try:
        mmcv = import_module("mmcv")
    except ModuleNotFoundError as error:
        if error.name != "mmcv":
            raise
        raise ModuleNotFoundError("No module named 'mmcv': pip install mmcv-lite==2.1.0", name="mmcv") from error
    try:
        extension = import_module(_NAME)
        return isinstance(getattr(extension.__spec__, "loader", None), _Bridge)
    except ModuleNotFoundError:
        pass  # mmcv-lite
    except ImportError as error:  # compiled for another PyTorch
        warnings.warn(f"The compiled mmcv does not load, and is replaced: {error}", stacklevel=2)
    extension = module_from_spec(ModuleSpec(_NAME, _Bridge()))
    extension.__spec__.loader.exec_module(extension)
    sys.modules[_NAME] = mmcv._ext = extension
    return True
