"""Published dense checkpoints: every name of theirs finds its place, through every door, or the error names it.

The state dicts are those of the golden files without the classifier, with the norms of the outputs, Vim's pyramid and
the heads that MMSegmentation and MMDetection name themselves. The narrow heads are the tests' own.
"""

import functools

import parity
import pytest
import timm
import torch

pytest.importorskip("mmcv")
import vision_ssm.openmmlab

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from mmdet.apis import init_detector
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.apis import init_model

import vision_ssm
from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import Runner, load_config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # mmseg's and mmdet's own
WIDTHS = [96, 192, 384, 768]
# golden file: config, output norms as the reference names them, maps to compare
CASES = {
    "vmamba_tiny_s1l8": ("segmentation/vmamba_tiny_s1l8_upernet_ade20k.py", "outnorm{}", range(4)),
    "vmamba_vanilla_tiny": ("segmentation/vanilla_vmamba_tiny_upernet_ade20k.py", "outnorm{}", range(4)),
    "localmamba_local_vssm_tiny": ("segmentation/local_vmamba_tiny_upernet_ade20k.py", "outnorm{}", range(4)),
    "localmamba_local_vim_tiny": ("segmentation/local_vim_tiny_upernet_ade20k.py", "outnorm_{}", range(4)),
    "vim_tiny": ("segmentation/vim_tiny_upernet_ade20k.py", None, ()),
}
DETECTOR = "detection/vmamba_tiny_s1l8_mask_rcnn_1x_coco.py"
each_case = pytest.mark.parametrize("golden", CASES)


def narrow(name: str):
    """The config, with a head that costs nothing."""
    cfg = load_config(name)
    cfg.model.backbone.checkpoint = None
    cfg.model.backbone.img_size = 64 if "vim" in name else None
    if "vim" not in name:
        del cfg.model.backbone["img_size"]
    if "decode_head" in cfg.model:
        cfg.model.decode_head.channels = cfg.model.auxiliary_head.channels = 8
        for part in (cfg.model.decode_head, cfg.model.auxiliary_head, cfg.model.get("neck", {})):
            if "norm_cfg" in part:
                part.norm_cfg.type = "BN"
    else:
        cfg.model.roi_head.bbox_head.fc_out_channels = 8
    return cfg


def filled(names: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(parity.fill_value(name, tuple(shape))) for name, shape in names.items()}


def build(cfg):
    init_default_scope(cfg.default_scope)
    return MODELS.build(dict(cfg.model, _scope_=cfg.default_scope))


@functools.cache
def official_backbone(golden: str) -> dict[str, torch.Tensor]:
    """A published backbone's state dict, without prefix."""
    _, outnorm, indices = CASES[golden]
    names = {
        name: shape
        for name, shape in parity.load(golden)["state_dict"].items()
        if not name.startswith(("classifier.", "head."))
    }
    if golden == "localmamba_local_vim_tiny":  # which deletes it; Vim's files keep the classifier's
        del names["norm_f.weight"]
    plain = golden in ("vim_tiny", "localmamba_local_vim_tiny")
    width = parity.load(golden)["state_dict"]["head.weight"][1] if plain else None
    for i in indices:
        names |= {f"{outnorm.format(i)}.{kind}": (width or WIDTHS[i],) for kind in ("weight", "bias")}
    if plain:  # 64x64 pixels
        names |= {"pos_embed": (1, 16, width), "rope.freqs_cos": (16, width), "rope.freqs_sin": (16, width)}
    if golden == "localmamba_local_vim_tiny":  # LayerNorms
        names |= {f"layers.{i}.norm.bias": (width,) for i in range(20)}
    if golden == "vim_tiny":
        del names["cls_token"], names["rope.freqs_cos"], names["rope.freqs_sin"]
        for level in ("fpn1.0", "fpn1.3", "fpn2.0"):
            names |= {f"{level}.weight": (width, width, 2, 2), f"{level}.bias": (width,)}
        names |= {f"fpn1.1.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")}
        names["fpn1.1.num_batches_tracked"] = ()
    return filled(names)


def official(golden: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A published dense network's state dict: ours for the heads, theirs for the backbone."""
    heads = filled({k: v.shape for k, v in model.state_dict().items() if not k.startswith(("backbone.", "neck."))})
    if golden == DETECTOR:
        neck = filled({k: v.shape for k, v in model.state_dict().items() if k.startswith("neck.")})
        heads, golden = heads | neck, "vmamba_tiny_s1l8"
    return {f"backbone.{name}": value for name, value in official_backbone(golden).items()} | heads


@pytest.fixture
def through_runner(tmp_path):
    """Load a checkpoint as `train` and `test` do."""

    def load(model, path) -> None:
        scope = f"{tmp_path.name}_{path.parent.name}"
        runner = Runner(model, tmp_path / "run", experiment_name=scope, log_level="ERROR")
        runner.load_checkpoint(str(path))

    return load


@pytest.fixture
def envelope(tmp_path):
    def save(state_dict):
        path = tmp_path / "iter_160000.pth"
        torch.save({"meta": {"iter": 160000, "mmseg_version": "1.2.2"}, "state_dict": state_dict}, path)
        return path

    return save


def assert_in_place(golden: str, model: torch.nn.Module) -> None:
    """The backbone computes what the classifier with the same weights does; norms, pyramid and heads are there."""
    _, outnorm, indices = CASES[golden]
    names = parity.load(golden)["state_dict"]
    state_dict = filled(names)
    backbone = model.eval().backbone
    x = torch.from_numpy(parity.make_input((1, 3, 64, 64)))
    if golden == "vim_tiny":
        whole = timm.create_model("vim_tiny_patch16_224", img_size=64, class_token=False, global_pool="avg")
        del state_dict["cls_token"]
    else:
        name = golden.replace("vmamba_vanilla_tiny", "vanilla_vmamba_tiny").replace("localmamba_", "")
        kwargs = dict(img_size=64, rms_norm=False) if "vim" in golden else {}
        whole = timm.create_model(name.replace("vssm", "vmamba"), **kwargs)
    if "pos_embed" in names:
        state_dict["pos_embed"] = official_backbone(golden)["pos_embed"]
    if golden == "localmamba_local_vim_tiny":
        state_dict |= filled({f"layers.{i}.norm.bias": (192,) for i in range(20)}) | {"norm_f.bias": torch.zeros(192)}
    whole = vision_ssm.load_checkpoint(whole, state_dict).eval()
    whole.mixer_taps = backbone.model.__dict__.get("mixer_taps", False)
    with torch.no_grad():
        found = backbone.model.forward_intermediates(x, backbone.out_indices, intermediates_only=True)
        expected = whole.forward_intermediates(x, backbone.out_indices, intermediates_only=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    own = model.state_dict()
    for i in indices:  # LocalVim counts its outputs
        for kind in ("weight", "bias"):
            ours = own[f"backbone.out_norms.{backbone.out_indices[i]}.{kind}"]
            assert torch.equal(ours, *filled({f"{outnorm.format(i)}.{kind}": ours.shape}).values())
    for name, value in own.items():
        if not name.startswith(("backbone.", "neck.")):
            assert torch.equal(value, filled({name: value.shape})[name].to(value.dtype)), name
    if golden == "vim_tiny":
        theirs = official_backbone(golden)
        for ours, level in (("neck.upsample_4x", "fpn1"), ("neck.upsample_2x", "fpn2")):
            parts = {k.removeprefix(ours): v for k, v in own.items() if k.startswith(ours)}
            assert parts.keys() == {k.removeprefix(level) for k in theirs if k.startswith(level)}
            assert all(torch.equal(v.float(), theirs[level + k]) for k, v in parts.items())


@each_case
def test_through_the_runner(golden, through_runner, envelope):
    model = build(narrow(CASES[golden][0]))
    through_runner(model, envelope(official(golden, model)))
    assert_in_place(golden, model)


@each_case
def test_through_load_state_dict(golden):
    model = build(narrow(CASES[golden][0]))
    state_dict = official(golden, model)
    if golden == "vim_tiny":  # a module's loading cannot hand the pyramid to its neighbour
        with pytest.raises(RuntimeError, match=r"Missing key.*neck\.upsample_4x\.0\.weight"):
            model.load_state_dict(state_dict)
        state_dict = model.backbone.convert_state_dict(state_dict, "backbone.")
    before = dict(state_dict)
    model.load_state_dict(state_dict)
    assert state_dict.keys() == before.keys()  # the caller's dict stays as it is
    assert_in_place(golden, model)


@pytest.mark.parametrize("golden", ["vmamba_tiny_s1l8", "localmamba_local_vim_tiny"])
def test_through_the_libraries(golden, envelope):
    cfg = narrow(CASES[golden][0])
    path = envelope(official(golden, build(cfg)))
    assert_in_place(golden, init_model(cfg, str(path), device="cpu"))
    model = build(cfg)
    load_checkpoint(model, str(path), strict=True)  # MMEngine's own
    assert_in_place(golden, model)


def test_detector(through_runner, envelope):
    cfg = narrow(DETECTOR)
    model = build(cfg)
    path = envelope(official(DETECTOR, model))
    through_runner(model, path)
    own = model.state_dict()
    name = "neck.fpn_convs.0.conv.weight"
    assert torch.equal(own[name], filled({name: (256, 256, 3, 3)})[name])
    segmentor = build(narrow(CASES["vmamba_tiny_s1l8"][0]))
    segmentor.load_state_dict(official("vmamba_tiny_s1l8", segmentor))
    for name, value in segmentor.backbone.state_dict().items():
        assert torch.equal(own[f"backbone.{name}"], value)

    detector = init_detector(cfg, str(path), device="cpu")
    assert all(torch.equal(value, own[name]) for name, value in detector.state_dict().items())


@each_case
def test_own_names_stay(golden, through_runner, envelope):
    model = build(narrow(CASES[golden][0]))
    converted = model.backbone.convert_state_dict(official(golden, model), "backbone.")
    assert converted.keys() == model.state_dict().keys()
    again = model.backbone.convert_state_dict(converted, "backbone.")
    assert again.keys() == converted.keys() and all(again[name] is value for name, value in converted.items())
    through_runner(model, envelope(converted))
    assert_in_place(golden, model)


def test_the_oldest_names():
    """Vanilla VMamba's first release named its layers otherwise."""
    model = build(narrow(CASES["vmamba_vanilla_tiny"][0]))
    state_dict = official("vmamba_vanilla_tiny", model)
    expected = model.backbone.convert_state_dict(state_dict, "backbone.")
    older = (
        ("patch_embed.0.", "patch_embed.proj."),
        ("patch_embed.2.", "patch_embed.norm."),
        (".op.", ".self_attention."),
    )
    renamed = {}
    for name, value in state_dict.items():
        for new, old in older:
            name = name.replace(new, old)
        renamed[name.replace(".norm.", ".ln_1.") if ".blocks." in name and "self_att" not in name else name] = value
    assert any("ln_1" in name for name in renamed)
    found = model.backbone.convert_state_dict(renamed, "backbone.")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_misfits_are_named(through_runner, envelope):
    model = build(narrow(CASES["vmamba_tiny_s1l8"][0]))
    good = official("vmamba_tiny_s1l8", model)

    without = {name: value for name, value in good.items() if name != "backbone.outnorm2.weight"}
    with pytest.raises(CheckpointError, match=r"missing: backbone\.out_norms\.2\.weight$"):
        through_runner(model, envelope(without))
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone\.out_norms\.2\.weight"):
        model.load_state_dict(without)

    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.model\.stages\.4\.blocks\.0\.norm\.weight$"):
        through_runner(model, envelope(good | {"backbone.layers.4.blocks.0.norm.weight": torch.ones(3)}))
    with pytest.raises(
        CheckpointError, match=r"other shapes: decode_head\.conv_seg\.bias is \(19,\), expected \(150,\)"
    ):
        through_runner(model, envelope(good | {"decode_head.conv_seg.bias": torch.ones(19)}))

    other = build(narrow(CASES["vmamba_vanilla_tiny"][0]))
    with pytest.raises(
        CheckpointError, match=r"stages\.0\.blocks\.0\.norm2\.weight .*; unexpected: .*reduction\.weight"
    ):
        through_runner(model, envelope(official("vmamba_vanilla_tiny", other)))
    with pytest.raises(CheckpointError, match=r"missing: backbone\.model\.stem\.0\.weight"):
        through_runner(model, envelope({name: value for name, value in good.items() if "backbone" not in name}))


def test_a_classifier_is_no_dense_checkpoint(through_runner, envelope):
    model = build(narrow(CASES["vmamba_tiny_s1l8"][0]))
    with pytest.raises(CheckpointError, match=r"unexpected: patch_embed\.0\.weight"):
        through_runner(model, envelope(filled(parity.load("vmamba_tiny_s1l8")["state_dict"])))
