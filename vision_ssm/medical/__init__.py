"""Networks for medical images, volumes and videos, registered in timm on import.

They need PyTorch and timm alone; `vision_ssm.volumes` trains and evaluates them with MONAI.
"""

from timm.models import is_model, list_models

_FAMILIES = (
    "lightm_unet",
    "nnmamba",
    "umamba",
    "vivim",
)


def _register() -> None:
    import importlib

    taken = set(list_models())
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
    if replaced := taken & set(model_names()):
        raise ImportError(f"other models of these names were registered in timm before: {', '.join(sorted(replaced))}")


def model_names(pattern: str = "") -> list[str]:
    """Names of the registered networks, those matching a shell pattern if one is given."""
    names = (name for family in _FAMILIES for name in list_models(pattern, module=family))
    return [name for name in names if is_model(name)]


_register()

from .lightm_unet import LightMUNet  # noqa: E402
from .nnmamba import NnMambaClassifier, NnMambaLandmark, NnMambaSeg, SiameseMamba  # noqa: E402
from .plans import plan_arguments  # noqa: E402
from .umamba import UMamba, UMambaV1  # noqa: E402 - after the registration, which names what is taken
from .vivim import Vivim  # noqa: E402

__all__ = [
    "LightMUNet",
    "NnMambaClassifier",
    "NnMambaLandmark",
    "NnMambaSeg",
    "SiameseMamba",
    "UMamba",
    "UMambaV1",
    "Vivim",
    "model_names",
    "plan_arguments",
]
