"""Medical volumes, and 2D networks on their slices, by config: MONAI's data, losses and inference on the engine.

`custom_imports = dict(imports=["vision_ssm.volumes"])` in a config makes it all available. Needs the extra `medical`.
"""

from importlib.util import find_spec

if missing := [name for name in ("mmengine", "monai", "nibabel") if find_spec(name) is None]:
    raise ImportError(f"medical volumes need {' and '.join(missing)}: pip install 'vision-ssm[medical]'")

from .. import engine as _engine  # noqa: F401 - registers the runner and its optimiser wrapper
from .case import Case
from .dataset import VolumeDataset
from .loss import DeepSupervision
from .metrics import VolumeMetrics
from .segmentor import VolumeSegmentor
from .transforms import build_transforms
from .windows import SlidingWindows

__all__ = [
    "Case",
    "DeepSupervision",
    "SlidingWindows",
    "VolumeDataset",
    "VolumeMetrics",
    "VolumeSegmentor",
    "build_transforms",
]
