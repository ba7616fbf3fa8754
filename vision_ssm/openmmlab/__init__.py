"""MMSegmentation and MMDetection on today's PyTorch: the bridge to mmcv's operators, and what configs name.

`custom_imports = dict(imports=["vision_ssm.openmmlab"])` in a config makes it all available to any tool of theirs,
but for what needs one of the two libraries itself: `.network` (MMSegmentation) and `.tta` (MMDetection).
"""

from importlib.util import find_spec

if missing := [name for name in ("mmengine", "mmcv") if find_spec(name) is None]:
    raise ImportError(
        f"MMSegmentation and MMDetection need {' and '.join(missing)}: pip install 'vision-ssm[openmmlab]'"
    )

from mmengine.registry import MODELS
from timm.layers import LayerNorm2d

from .. import engine as _engine  # noqa: F401 - registers the runner and its optimiser wrapper
from .backbone import TimmFeatures
from .layer_decay import LayerDecayConstructor
from .loading import LoadImageFromFile
from .mmcv_ops import install
from .pyramid import SimpleFeaturePyramid

install()  # before anything imports mmcv.ops
MODELS.register_module("LN2d", module=LayerNorm2d)  # a `norm_cfg` of heads

__all__ = ["LayerDecayConstructor", "LoadImageFromFile", "SimpleFeaturePyramid", "TimmFeatures", "install"]
