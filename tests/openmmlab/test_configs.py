"""Every packaged config: it builds, has the published size, follows its recipe, trains a step and tests."""

import pytest
import torch

pytest.importorskip("mmcv")
import vision_ssm.openmmlab  # noqa: F401 - before mmseg and mmdet, which import mmcv's operators

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
import timm
from mmdet.datasets import CocoDataset
from mmengine import Config
from mmengine.registry import MODELS
from openmmlab import dense_data

from vision_ssm.engine import load_config, packaged_configs, test, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # mmseg's and mmdet's own
test.__test__ = False  # the engine's, no test of ours
BOTH = [name for name in packaged_configs() if load_config(name).default_scope in ("mmseg", "mmdet")]
# Whole networks have tests of their own (test_network.py).
CONFIGS = [name for name in BOTH if not name.startswith("demo/") and "backbone" in load_config(name).model]
ADE20K = [name for name in CONFIGS if name.startswith("segmentation/")]
COCO = [name for name in CONFIGS if name.startswith("detection/")]

# Millions of parameters in the references' tables (VMamba, assets/performance.md).
MILLIONS = {
    "segmentation/vanilla_vmamba_tiny_upernet_ade20k.py": 55,
    "segmentation/vanilla_vmamba_small_upernet_ade20k.py": 76,
    "segmentation/vanilla_vmamba_base_upernet_ade20k.py": 110,
    "segmentation/vmamba_tiny_upernet_ade20k.py": 62,
    "segmentation/vmamba_tiny_s1l8_upernet_ade20k.py": 62,
    "segmentation/vmamba_tiny_s2l5_upernet_ade20k.py": 62,
    "segmentation/vmamba_small_s2l15_upernet_ade20k.py": 82,
    "segmentation/vmamba_base_s2l15_upernet_ade20k.py": 122,
    "detection/vanilla_vmamba_tiny_mask_rcnn_1x_coco.py": 42,
    "detection/vanilla_vmamba_tiny_mask_rcnn_3x_coco.py": 42,
    "detection/vanilla_vmamba_small_mask_rcnn_1x_coco.py": 64,
    "detection/vanilla_vmamba_small_mask_rcnn_3x_coco.py": 64,
    "detection/vanilla_vmamba_base_mask_rcnn_1x_coco.py": 96,
    "detection/vmamba_tiny_s1l8_mask_rcnn_1x_coco.py": 50,
    "detection/vmamba_tiny_s1l8_mask_rcnn_3x_coco.py": 50,
    "detection/vmamba_tiny_s2l5_mask_rcnn_1x_coco.py": 50,
    "detection/vmamba_tiny_s2l5_mask_rcnn_3x_coco.py": 50,
    "detection/vmamba_small_s2l15_mask_rcnn_1x_coco.py": 70,
    "detection/vmamba_small_s2l15_mask_rcnn_3x_coco.py": 70,
    "detection/vmamba_base_s2l15_mask_rcnn_1x_coco.py": 108,
}

# model, drop path, what the heads read: (outputs, norms, tap), from the references' configs and scripts.
STAGES = ((0, 1, 2, 3), True, "stream")
RECIPES = {
    "segmentation/vanilla_vmamba_tiny": (0.3, STAGES),
    "segmentation/vanilla_vmamba_small": (0.3, STAGES),
    "segmentation/vanilla_vmamba_base": (0.3, STAGES),
    "segmentation/vmamba_tiny_s1l8": (0.2, STAGES),
    "segmentation/vmamba_tiny_s2l5": (0.2, STAGES),
    "segmentation/vmamba_small_s2l15": (0.3, STAGES),
    "segmentation/vmamba_base_s2l15": (0.6, STAGES),
    "segmentation/local_vmamba_tiny": (0.1, STAGES),
    "segmentation/local_vmamba_small": (0.2, STAGES),
    "segmentation/local_vim_tiny": (0.1, ((4, 9, 14, 19), True, "mixer")),
    "segmentation/local_vim_small": (0.1, ((4, 9, 14, 19), True, "mixer")),
    "segmentation/vim_tiny_patch16_224": (0.1, ((5, 11, 17, 23), False, "mixer")),
    "segmentation/vim_small_patch16_224": (0.1, ((5, 11, 17, 23), False, "stream")),
    "detection/vanilla_vmamba_tiny": (0.2, STAGES),
    "detection/vanilla_vmamba_small": (0.2, STAGES),
    "detection/vanilla_vmamba_base": (0.2, STAGES),
    "detection/vmamba_tiny_s1l8": (0.2, STAGES),
    "detection/vmamba_tiny_s2l5": (0.2, STAGES),
    "detection/vmamba_small_s2l15": (0.3, STAGES),
    "detection/vmamba_base_s2l15": (0.6, STAGES),
    "detection/local_vmamba_tiny": (0.2, STAGES),
    "detection/local_vmamba_small": (0.2, STAGES),
    "detection/vim_tiny_patch16_224": (0.1, ((23,), False, "stream")),
}

# For a step: the small model of the family, the plain ones with four blocks.
SMALL = {
    "vanilla_vmamba": "vanilla_vmamba_test",
    "local_vmamba": "local_vmamba_test",
    "vmamba": "vmamba_test",
    "local_vim": "local_vim_test",
    "vim": "vim_test",
}
CHANNELS = {256: 16, 384: 24, 512: 32, 1024: 48}


def _model(cfg):
    return MODELS.build(dict(cfg.model, _scope_=cfg.default_scope))


def _count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_all_published_sizes_and_recipes_are_checked():
    assert set(MILLIONS) <= set(CONFIGS)
    assert {name for name in CONFIGS if "/vmamba_" in name or "/vanilla_" in name} == set(MILLIONS)


@pytest.mark.parametrize("name", BOTH)
def test_builds_with_the_published_size(name):
    cfg = load_config(name)
    with torch.device("meta"):
        model = _model(cfg)
    if name in MILLIONS:
        assert round(_count(model) / 1e6) == MILLIONS[name]
    widths = cfg.model.get("neck", cfg.model.get("decode_head", {})).get("in_channels")
    if isinstance(widths, list):
        assert widths == model.backbone.num_channels


def test_vim_tiny_upernet_has_the_parameters_of_the_published_log():
    cfg = load_config("segmentation/vim_tiny_upernet_ade20k.py")
    with torch.device("meta"):
        model = _model(cfg)
    # The log is of images of 1024x1024, with a last norm that nothing reads.
    table = model.backbone.model.pos_embed
    assert table.shape == (1, 32 * 32, 192)
    assert _count(model) - table.numel() + 64 * 64 * 192 + 192 == cfg.published.params == 12_901_100


@pytest.mark.parametrize("name", CONFIGS)
def test_figures_have_a_source(name):
    published = load_config(name).published
    assert published.source.startswith("https://github.com/")
    if name in ADE20K:
        assert 35 < published.mIoU.single_scale < 55
    else:
        assert 35 < published.mask_AP < published.box_AP < 55
    if published.checkpoint:
        assert published.checkpoint.startswith("https://github.com/MzeroMiko/VMamba/releases/download/")
        assert published.checkpoint.endswith(".pth") and ("seg/" in published.checkpoint) == (name in ADE20K)


@pytest.mark.parametrize("name", CONFIGS)
def test_backbone_follows_the_recipe(name):
    backbone = load_config(name).model.backbone
    drop_path, (indices, norms, tap) = RECIPES[f"{name.split('/')[0]}/{backbone.model_name}"]
    alias = name == "segmentation/vmamba_tiny_upernet_ade20k.py"
    assert alias or name.split("/")[1].startswith(backbone.model_name.removesuffix("_patch16_224"))
    assert backbone.drop_path_rate == drop_path
    assert (tuple(backbone.out_indices), backbone.out_norm, backbone.get("tap", "stream")) == (indices, norms, tap)
    assert backbone.checkpoint is True  # starts from the published classifier
    assert backbone.get("rms_norm", True) == (not backbone.model_name.startswith("local_vim"))
    assert backbone.get("img_size") == (None if indices == (0, 1, 2, 3) else 512 if name in ADE20K else 1024)
    if backbone.model_name.startswith("vim"):
        assert backbone.rope == (name != "segmentation/vim_tiny_upernet_ade20k.py")


def _pipeline(cfg, loader: str) -> dict:
    return {step.type: step for step in cfg[loader].dataset.pipeline}


@pytest.mark.parametrize("name", ADE20K)
def test_segmentation_recipe(name):
    cfg = load_config(name)
    vim = cfg.model.backbone.model_name.startswith("vim")
    iters, batch = (60_000, 8) if vim else (160_000, 4)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", iters)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (batch, 4 * batch)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.begin, warm_up.end) == ("LinearLR", 1e-6, 0, 1500)
    assert (decay.type, decay.power, decay.eta_min) == ("PolyLR", 1.0, 0.0)
    assert (decay.begin, decay.end) == (1500, iters) and not warm_up.by_epoch and not decay.by_epoch

    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, tuple(optimizer.betas)) == ("AdamW", (0.9, 0.999))
    expected = {"vim_tiny_patch16_224": (2e-4, 0.1, 0.92), "vim_small_patch16_224": (1e-4, 0.05, 0.95)}
    lr, decay, layer_decay = expected.get(cfg.model.backbone.model_name, (6e-5, 0.01, None))
    assert (optimizer.lr, optimizer.weight_decay) == (lr, decay)
    if vim:
        assert cfg.optim_wrapper.constructor == "TimmLayerDecay"
        assert cfg.optim_wrapper.paramwise_cfg.layer_decay == layer_decay
    else:
        custom = dict(norm=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))
        assert cfg.optim_wrapper.paramwise_cfg == dict(custom_keys=custom)

    train_steps, test_steps = _pipeline(cfg, "train_dataloader"), _pipeline(cfg, "test_dataloader")
    for steps in (train_steps, test_steps):
        assert steps["LoadAnnotations"].reduce_zero_label
    resize = train_steps["RandomResize"]
    assert (tuple(resize.scale), tuple(resize.ratio_range), resize.keep_ratio) == ((2048, 512), (0.5, 2.0), True)
    assert (tuple(train_steps["RandomCrop"].crop_size), train_steps["RandomCrop"].cat_max_ratio) == ((512, 512), 0.75)
    assert train_steps["RandomFlip"].prob == 0.5 and "PhotoMetricDistortion" in train_steps
    assert (tuple(test_steps["Resize"].scale), test_steps["Resize"].keep_ratio) == ((2048, 512), True)
    assert list(test_steps).index("Resize") < list(test_steps).index("LoadAnnotations")  # the truth keeps its size
    assert cfg.train_dataloader.dataset.data_prefix.img_path == "images/training"
    assert cfg.test_dataloader.dataset.data_prefix.img_path == "images/validation"

    model = cfg.model
    assert tuple(model.data_preprocessor.size) == (512, 512)
    assert (model.decode_head.num_classes, model.auxiliary_head.num_classes) == (150, 150)
    width = model.decode_head.in_channels[2]
    assert (model.decode_head.channels, model.auxiliary_head.channels) == (width if vim else 512, 256)
    assert (model.auxiliary_head.in_index, model.auxiliary_head.in_channels) == (2, width)
    assert model.auxiliary_head.loss_decode.loss_weight == 0.4
    slide = dict(mode="slide", crop_size=(512, 512), stride=(341, 341))
    assert model.test_cfg == (slide if vim else dict(mode="whole"))
    assert ("neck" in model) == vim


@pytest.mark.parametrize("name", COCO)
def test_detection_recipe(name):
    cfg = load_config(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, tuple(optimizer.betas)) == ("AdamW", 1e-4, (0.9, 0.999))
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, steps.type, steps.gamma) == ("LinearLR", 0.001, "MultiStepLR", 0.1)
    batch = cfg.train_dataloader.batch_size
    assert cfg.auto_scale_lr.base_batch_size == 8 * batch
    assert cfg.train_dataloader.dataset.filter_cfg == dict(filter_empty_gt=True, min_size=32)
    train_steps, test_steps = _pipeline(cfg, "train_dataloader"), _pipeline(cfg, "test_dataloader")
    assert train_steps["LoadAnnotations"].with_mask and train_steps["RandomFlip"].prob == 0.5
    heads = cfg.model.roi_head.bbox_head
    if "vim" in name:  # ViTDet: 100 epochs of batch 64, counted in iterations
        assert (batch, cfg.train_cfg.max_iters, list(steps.milestones)) == (8, 184375, [163889, 177546])
        assert (warm_up.end, optimizer.weight_decay) == (250, 0.1)
        assert cfg.optim_wrapper.paramwise_cfg.layer_decay == 0.837
        assert tuple(train_steps["RandomResize"].ratio_range) == (0.1, 2.0)
        assert tuple(train_steps["RandomCrop"].crop_size) == tuple(test_steps["Resize"].scale) == (1024, 1024)
        assert [one.pos_iou_thr for one in (stage.assigner for stage in cfg.model.train_cfg.rcnn)] == [0.5, 0.6, 0.7]
        assert [1 / one.bbox_coder.target_stds[0] for one in heads] == pytest.approx([10, 20, 30], rel=0.02)
        assert cfg.model.data_preprocessor.pad_size_divisor == 1024 and "Pad" not in test_steps
        assert all(one.num_classes == 80 and one.reg_class_agnostic for one in heads)
        return
    epochs, milestones = (36, [27, 33]) if "_3x_" in name else (12, [8, 11])
    assert (batch, cfg.train_cfg.max_epochs, steps.end) == (2, epochs, epochs)
    assert (list(steps.milestones), warm_up.end, optimizer.weight_decay) == (milestones, 1000, 0.05)
    assert cfg.optim_wrapper.paramwise_cfg == dict(custom_keys=dict(norm=dict(decay_mult=0.0)))
    assert tuple(test_steps["Resize"].scale) == (1333, 800)
    if epochs == 36:
        plain, cropped = train_steps["RandomChoice"].transforms
        assert [scale[0] for scale in plain[0].scales] == list(range(480, 801, 32))
        assert tuple(cropped[1].crop_size) == (384, 600)
    else:
        assert tuple(train_steps["Resize"].scale) == (1333, 800)
    assert (heads.num_classes, cfg.model.roi_head.mask_head.num_classes) == (80, 80)


# One step. Sizes and widths are divided, all else is the config's.


def _smaller(node, key: str = ""):
    """Pixels of a pipeline, a preprocessor or a sliding window, divided by eight."""
    if isinstance(node, dict):
        for name in node:
            node[name] = _smaller(node[name], name)
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(_smaller(item, key) for item in node)
    return max(32, node // 8) if key in ("scale", "scales", "crop_size", "size", "stride", "pad_size_divisor") else node


def _narrower(node, key: str = ""):
    """Channels of necks and heads, cut down."""
    if isinstance(node, dict):
        for name in node:
            node[name] = _narrower(node[name], name)
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(_narrower(item, key) for item in node)
    return CHANNELS.get(node, node) if key.endswith("channels") else node


def _with_small_backbone(model) -> None:
    backbone = model.backbone
    family = next(name for name in SMALL if backbone.model_name.startswith(name))
    backbone.update(model_name=SMALL[family], checkpoint=None)
    if not family.endswith("vmamba"):
        backbone.update(depth=4, img_size=64, out_indices=range(4 - len(backbone.out_indices), 4))
        backbone.pop("directions", None)
    info = timm.create_model(SMALL[family], device="meta").feature_info
    widths = [info[i if len(info) == 4 else 0]["num_chs"] for i in range(len(backbone.out_indices))]
    if "decode_head" in model:
        model.decode_head.in_channels, model.auxiliary_head.in_channels = widths, widths[2]
    if "neck" in model:
        key = "embed_dim" if model.neck.type == "Feature2Pyramid" else "in_channels"
        model.neck[key] = widths if model.neck.type == "FPN" else widths[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return dict(
        mmseg=dense_data.ade20k(root / "ade"), mmdet=dense_data.coco(root / "coco", CocoDataset.METAINFO["classes"])
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_a_step_and_tests(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, "pretty_text", property(str))  # the formatting takes longer than the step
    cfg = load_config(name)
    root = data[cfg.default_scope]
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    for loader in ("train_dataloader", "test_dataloader"):
        cfg[loader].update(num_workers=0, persistent_workers=False, batch_size=min(2, cfg[loader].batch_size))
        cfg[loader].dataset.data_root = str(root)
        _smaller(cfg[loader].dataset.pipeline)
    if cfg.default_scope == "mmdet":
        cfg.test_evaluator.ann_file = str(root / "annotations/instances_val2017.json")
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # what an untrained head finds counts too
    model = cfg.model
    for part in (model.data_preprocessor, model.test_cfg):
        _smaller(part)
    for part in model.values():
        _narrower(part)
    _with_small_backbone(model)
    cfg.train_cfg.pop("val_interval")
    cfg.train_cfg["max_epochs" if "max_epochs" in cfg.train_cfg else "max_iters"] = 1
    cfg.default_hooks.checkpoint.pop("save_best")
    cfg.experiment_name = cfg.visualizer.name = f"{tmp_path.name}_train"
    trained = train(cfg, work_dir=tmp_path)
    checkpoint = next(tmp_path.glob("*_1.pth"))
    moments = torch.load(checkpoint, weights_only=True)["optimizer"]["state"].values()
    assert len(moments) == len(list(trained.parameters()))  # every parameter got a gradient
    assert all(one["exp_avg"].isfinite().all() for one in moments)

    cfg.experiment_name = cfg.visualizer.name = f"{tmp_path.name}_test"
    metrics = test(cfg, checkpoint, work_dir=tmp_path)
    keys = {"mIoU", "mAcc", "aAcc"} if name in ADE20K else {"coco/bbox_mAP", "coco/segm_mAP"}
    assert keys <= metrics.keys()
