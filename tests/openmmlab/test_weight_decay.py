"""Each recipe's config decays what the published training decays, parameter by parameter."""

import re

import pytest
import torch

pytest.importorskip("mmcv")
import vision_ssm.openmmlab  # noqa: F401 - before mmseg and mmdet, which import mmcv's operators

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from vision_ssm.engine import load_config, packaged_configs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # mmseg's and mmdet's own

# What is left out of the decay, by our names. Swin's recipe, in all four: parameters named after a norm, and tables.
SWIN = r".*norm.*|.*pos_embed"
# BEiT's recipe, as Vim has it: what has one dimension in the reference, which keeps a parameter for each direction.
BEIT = r".*\.(bias|dt_bias|D)|.*norm\.weight|.*\.bn\.weight|neck\.upsample_4x\.1\.weight"
# ViTDet's recipe, as Vim has it: its norms are none of those that detectron2 leaves out.
VITDET = r"backbone\.model\.pos_embed"
UNDECAYED = {
    "segmentation/vmamba_tiny_s1l8_upernet_ade20k": SWIN,
    "segmentation/vanilla_vmamba_tiny_upernet_ade20k": SWIN,
    "segmentation/local_vmamba_tiny_upernet_ade20k": SWIN,
    "segmentation/local_vim_tiny_upernet_ade20k": SWIN,
    "segmentation/vim_tiny_upernet_ade20k": BEIT,
    "segmentation/vim_small_upernet_ade20k": BEIT,
    "detection/vmamba_tiny_s1l8_mask_rcnn_1x_coco": SWIN,
    "detection/vanilla_vmamba_tiny_mask_rcnn_3x_coco": SWIN,
    "detection/local_vmamba_tiny_mask_rcnn_1x_coco": SWIN,
    "detection/vim_tiny_cascade_mask_rcnn_100ep_coco": VITDET,
}
STATES = {  # the scan's own parameters in the backbone: whether they are decayed
    SWIN: {"A_log": True, "D": True, "dt_bias": True},
    BEIT: {"A_log": True, "D": False, "dt_bias": False},
    VITDET: {"A_log": True, "D": True, "dt_bias": True},
}
WHOLE = [n for n in packaged_configs() if n.startswith("segmentation/") and "backbone" not in load_config(n).model]


def decays(name: str) -> dict[str, float]:
    """The weight decay of each parameter of a config's model, relative to the config's."""
    cfg = load_config(name)
    with torch.device("meta"):
        model = MODELS.build(dict(cfg.model, _scope_=cfg.default_scope))
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    found = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return {name: decay / cfg.optim_wrapper.optimizer.weight_decay for name, decay in found.items()}


@pytest.mark.parametrize("name", UNDECAYED)
def test_recipe(name):
    rule, found = UNDECAYED[name], decays(name)
    assert found == {key: 0.0 if re.fullmatch(rule, key) else 1.0 for key in found}
    for state, decayed in STATES[rule].items():
        some = {value for key, value in found.items() if key.endswith(f".ssm.{state}")}
        assert some == {float(decayed)}, state


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks_decay_everything(name):
    assert set(decays(name).values()) == {1.0}
