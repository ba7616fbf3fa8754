"""Networks for medical images, volumes and videos, registered in timm on import.

They need PyTorch and timm alone; `vision_ssm.volumes` trains and evaluates them with MONAI.
"""

from ..models import _registry

_FAMILIES = (
    "umamba",
    "lma_unet",
    "segmamba",
    "lightm_unet",
    "nnmamba",
    "vm_unet",
    "vm_unet_v2",
    "mamba_unet",
    "medmamba",
    "swin_umamba",
    "partners",
    "vivim",
    "mamba_nd",
)
_registry.register(__name__, _FAMILIES)

from ._base import DenseNetwork  # noqa: E402 - after the registration, which names what is taken
from ._tokens import TokenMixer  # noqa: E402
from ._vss import load_encoder  # noqa: E402
from .lightm_unet import LightMUNet  # noqa: E402
from .lma_unet import LMaUNet  # noqa: E402
from .mamba_nd import MambaND  # noqa: E402
from .mamba_unet import MambaUNet  # noqa: E402
from .medmamba import MedMamba  # noqa: E402
from .nnmamba import NnMambaClassifier, NnMambaLandmark, NnMambaNNUNet, NnMambaSeg  # noqa: E402
from .partners import SwinUNet, UNet  # noqa: E402
from .plans import plan_arguments  # noqa: E402
from .segmamba import SegMamba  # noqa: E402
from .swin_umamba import SwinUMamba, SwinUMambaD  # noqa: E402
from .umamba import UMamba, UMambaV1  # noqa: E402
from .vivim import Vivim  # noqa: E402
from .vm_unet import VMUNet  # noqa: E402
from .vm_unet_v2 import VMUNetV2  # noqa: E402

__all__ = [
    "DenseNetwork",
    "LMaUNet",
    "LightMUNet",
    "MambaND",
    "MambaUNet",
    "MedMamba",
    "NnMambaClassifier",
    "NnMambaLandmark",
    "NnMambaNNUNet",
    "NnMambaSeg",
    "SegMamba",
    "SwinUMamba",
    "SwinUMambaD",
    "SwinUNet",
    "TokenMixer",
    "UMamba",
    "UMambaV1",
    "UNet",
    "VMUNet",
    "VMUNetV2",
    "Vivim",
    "load_encoder",
    "model_names",
    "plan_arguments",
]


def model_names(pattern: str = "") -> list[str]:
    """Names of the registered networks, those matching a shell pattern if one is given."""
    return _registry.names(_FAMILIES, pattern)
