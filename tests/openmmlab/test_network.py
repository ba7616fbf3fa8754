"""Whole networks in MMSegmentation: the loss by its formula, images of any size, weights, a step and a test."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

pytest.importorskip("mmcv")
pytest.importorskip("vision_ssm.openmmlab")  # puts the bridge in place, before what needs it
pytest.importorskip("mmseg")
import parity
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.apis import init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from openmmlab import dense_data

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.engine import ConfigError, Runner, load_config, packaged_configs, train
from vision_ssm.engine import test as evaluate
from vision_ssm.openmmlab.network import NetworkSegmentor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # mmseg's own
CONFIGS = [
    name
    for name in packaged_configs()
    if (cfg := load_config(name)).default_scope == "mmseg" and cfg.model.type == "NetworkSegmentor"
]
CE = dict(type="CrossEntropyLoss", avg_non_ignore=True, loss_weight=0.5)
DICE = dict(type="DiceLoss", use_sigmoid=False, loss_weight=2.0)


@MODELS.register_module(force=True)
class Levels(torch.nn.Module):
    """Logits that are the image's pixels, each in a class of its own, at full resolution and at fractions of it."""

    def __init__(self, num_classes: int = 3, strides: tuple[int, ...] = (1,), multiple: int = 1):
        super().__init__()
        self.num_classes, self.strides, self.multiples = num_classes, strides, (multiple, multiple)
        self.scale = torch.nn.Parameter(torch.linspace(-1, 2, num_classes).reshape(1, -1, 1, 1))
        self.seen = []

    def forward(self, x: torch.Tensor):
        self.seen.append(tuple(x.shape[2:]))
        assert all(side % multiple == 0 for side, multiple in zip(x.shape[2:], self.multiples, strict=True))
        levels = [x[:, :1, ::step, ::step] * self.scale for step in self.strides]
        return levels if len(levels) > 1 else levels[0]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmseg")


def segmentor(network: dict | None = None, **kwargs) -> NetworkSegmentor:
    torch.manual_seed(0)
    return MODELS.build(dict(type="NetworkSegmentor", network=network or dict(type="Levels"), **kwargs))


def images(*sides: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *sides, generator=torch.Generator().manual_seed(1))


def labelled(label: torch.Tensor) -> list[SegDataSample]:
    return [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in label]


# The loss


def cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels that count of -log p of their class, in float64."""
    p, counts = logits.double().softmax(1), label != 255
    return -p.gather(1, label.clamp(max=logits.shape[1] - 1)[:, None])[:, 0][counts].log().mean()


def dice(logits: torch.Tensor, label: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    """Mean over images of 1 - 2 sum(pt) / (sum(p^2) + sum(t^2)), over classes and pixels."""
    p = logits.double().softmax(1)
    truth = torch.stack([label == i for i in range(logits.shape[1])], dim=1).double()
    sums = [(one * two).sum((1, 2, 3)) for one, two in ((p, truth), (p, p), (truth, truth))]
    return (1 - 2 * sums[0] / (sums[1] + sums[2] + 2 * eps)).mean()


@pytest.mark.parametrize("strides", [(1,), (1, 2), (1, 4, 8)])
def test_loss_is_a_weighted_sum_over_levels(strides):
    model = segmentor(dict(type="Levels", strides=strides), loss_decode=[CE, DICE])
    x = images(16, 24)
    label = torch.randint(0, 3, (2, 16, 24), generator=torch.Generator().manual_seed(2))
    label[:, :3, :5] = 255
    losses = model.loss(x, labelled(label))
    assert losses.keys() == {"decode.loss_ce", "decode.loss_dice", "decode.acc_seg"}
    expected = {"decode.loss_ce": 0.0, "decode.loss_dice": 0.0}
    weights = {1: [1], 2: [1, 0], 3: [2, 1, 0]}[len(strides)]  # nnU-Net's: none for the coarsest
    for stride, weight in zip(strides, weights, strict=True):
        logits = x[:, :1, ::stride, ::stride] * model.network.scale
        centre = stride // 2  # the pixel at the centre of each block
        target = label[:, centre::stride, centre::stride]
        expected["decode.loss_ce"] += 0.5 * weight / sum(weights) * cross_entropy(logits, target)
        expected["decode.loss_dice"] += 2.0 * weight / sum(weights) * dice(logits, target)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].double(), value, rtol=1e-5, atol=1e-6)
    right = ((x[:, :1] * model.network.scale).argmax(1) == label)[label != 255].double().mean()
    assert losses["decode.acc_seg"].item() == pytest.approx(100 * right.item(), rel=1e-4)


def test_one_class_is_a_sigmoid():
    model = segmentor(dict(type="Levels", num_classes=1), loss_decode=[dict(CE, loss_weight=1.0), DICE])
    model.network.scale.data.fill_(1.0)
    x = images(8, 8)
    label = (images(8, 8) > 0.3).long()[:, 0]
    losses = model.loss(x, labelled(label))
    expected = F.binary_cross_entropy_with_logits(x[:, 0].double(), label.double())
    torch.testing.assert_close(losses["decode.loss_ce"].double(), expected, rtol=1e-5, atol=1e-6)
    pair = torch.stack([torch.zeros_like(x[:, 0]), x[:, 0]], dim=1)
    torch.testing.assert_close(losses["decode.loss_dice"].double(), 2 * dice(pair, label), rtol=1e-5, atol=1e-6)
    found = torch.stack([one.pred_sem_seg.data[0] for one in model.predict(x)])
    assert torch.equal(found, (x[:, 0].sigmoid() > 0.5).long())
    assert (model.num_classes, model.out_channels) == (2, 2)


def test_views_of_one_class_are_merged():
    """Two views whose probabilities of the class have means below and above a half."""
    model = segmentor(dict(type="Levels", num_classes=1))
    model.network.scale.data.fill_(1.0)
    merging = MODELS.build(dict(type="SegTTAModel", module=model))
    rows = [math.log(p / (1 - p)) for p in (0.2, 0.9)], [math.log(p / (1 - p)) for p in (0.6, 0.45)]
    meta = dict(ori_shape=(1, 2), img_shape=(1, 2), img_path="", padding_size=[0] * 4)
    views = []
    for row in rows:
        views.append(model.predict(torch.tensor(row).reshape(1, 1, 1, 2), [SegDataSample(metainfo=meta)]))
    merged = merging.merge_preds([[view[0] for view in views]])
    assert merged[0].pred_sem_seg.data.flatten().tolist() == [0, 1]  # means 0.4 and 0.675


# Sizes


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (5, 40)])
def test_images_are_padded_and_logits_cropped(size):
    model = segmentor(dict(type="Levels", multiple=8))
    x = images(*size)
    logits = model.encode_decode(x, [])
    assert model.network.seen == [tuple(8 * math.ceil(side / 8) for side in size)]
    assert torch.equal(logits, x[:, :1] * model.network.scale)


def test_sliding_windows_of_a_pointwise_network_are_the_whole():
    slide = dict(mode="slide", crop_size=(16, 24), stride=(10, 12))
    whole, windows = segmentor(dict(type="Levels", multiple=8)), segmentor(dict(type="Levels"), test_cfg=slide)
    x = images(33, 50)
    for one, other in zip(whole.predict(x), windows.predict(x), strict=True):
        torch.testing.assert_close(one.seg_logits.data, other.seg_logits.data)
    assert len(windows.network.seen) == 3 * 4 and set(windows.network.seen) == {(16, 24)}


def test_windows_are_filled_for_small_images():
    model = segmentor(test_cfg=dict(mode="slide", crop_size=(32, 32), stride=(16, 16)))
    x = images(20, 40)
    assert torch.equal(model.inference(x, [dict(ori_shape=(20, 40))] * 2), x[:, :1] * model.network.scale)
    assert set(model.network.seen) == {(32, 32)}


@pytest.mark.parametrize(
    ("network", "fitting"),
    [
        (dict(name="vm_unet_test", num_classes=1), (64, 96)),
        (dict(name="mamba_unet_test", num_classes=4), (64, 96)),
        (dict(name="swin_umamba_test", in_chans=3, num_classes=3, deep_supervision=True), (64, 96)),
        (dict(name="umamba_2d_test", num_classes=3, deep_supervision=True, channel_tokens=False), (52, 72)),
        (dict(name="lightm_unet_2d_test", in_chans=3, num_classes=2), (52, 72)),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) else "",
)
def test_networks_take_images_of_any_size(network, fitting):
    model = segmentor(network).eval()
    x = images(50, 70, channels=model.network.in_chans)
    padded = torch.zeros(2, model.network.in_chans, *fitting)
    padded[..., :50, :70] = x
    with torch.no_grad():
        found = torch.stack([one.seg_logits.data for one in model.predict(x)])
        expected = model.network(padded)
    expected = expected[0] if isinstance(expected, list) else expected
    torch.testing.assert_close(found[:, -network["num_classes"] :], expected[..., :50, :70])


# Weights

UMAMBA = dict(name="umamba_bot_2d", features=(8, 16, 32, 64, 64), num_classes=4, deep_supervision=True)


@pytest.fixture(scope="module")
def golden():
    """What the reference computes, and its weights in the published names."""
    entry = parity.load("umamba_bot_2d_small")
    return entry, {name: torch.from_numpy(value) for name, value in parity.make_state_dict(entry).items()}


def assert_as_published(model: NetworkSegmentor, entry: dict) -> None:
    x = torch.from_numpy(parity.make_input(tuple(entry["inputs"][0])))
    with torch.no_grad():
        found = model.eval().inference(x, [dict(ori_shape=x.shape[2:])] * len(x))
    expected = entry["outputs"]["x".join(map(str, entry["inputs"][0])) + ":out.0"]
    assert parity.compare(found.numpy(), expected) <= entry["tolerance"]


@pytest.mark.parametrize("door", ["runner", "load_state_dict", "init_model", "checkpoint", "pretrained"])
def test_published_weights(door, golden, tmp_path):
    entry, state_dict = golden
    path = tmp_path / "published.pth"
    torch.save({"meta": {"dataset_meta": {}}, "state_dict": state_dict}, path)
    model = segmentor(UMAMBA)
    if door == "runner":
        Runner(
            model, tmp_path / "run", experiment_name=tmp_path.name, default_scope="mmseg", log_level="ERROR"
        ).load_checkpoint(str(path))
    elif door == "load_state_dict":
        model.load_state_dict(state_dict)
    elif door == "init_model":
        cfg = Config(dict(model=dict(type="NetworkSegmentor", network=UMAMBA), test_pipeline=[]))
        model = init_model(cfg, str(path), device="cpu")
    else:
        model = segmentor(UMAMBA, **{door: str(path)})
        model.init_weights()
    assert_as_published(model, entry)


def test_own_names_stay(golden):
    model = segmentor(UMAMBA)
    model.load_state_dict(golden[1])
    own = model.state_dict()
    assert all(name.startswith("network.") for name in own)
    again = model.convert_state_dict(own)
    assert again.keys() == own.keys() and all(again[name] is value for name, value in own.items())
    other = segmentor(UMAMBA)
    other.load_state_dict(own)
    assert_as_published(other, golden[0])
    assert not model.load_state_dict({}, strict=False).unexpected_keys  # what a resumed run without buffers does


def test_misfits_are_named(golden, tmp_path):
    path = tmp_path / "published.pth"
    torch.save(golden[1], path)
    model = segmentor(dict(UMAMBA, num_classes=5))
    runner = Runner(model, tmp_path / "run", experiment_name=tmp_path.name, default_scope="mmseg", log_level="ERROR")
    with pytest.raises(CheckpointError, match=r"other shapes: network\.decoder\.heads\.0\.weight is \(4, 64, 1, 1\)"):
        runner.load_checkpoint(str(path))
    with pytest.raises(CheckpointError, match=r"published.pth does not fit UMamba: other shapes: decoder\.heads"):
        segmentor(dict(UMAMBA, num_classes=5), checkpoint=str(path)).init_weights()


def test_encoder_starts_from_a_classifier(tmp_path):
    classifier = timm.create_model("vanilla_vmamba_test", depths=(1, 1, 2, 1), dim=16)
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.pth")
    model = segmentor(dict(name="vm_unet_test"), encoder=str(tmp_path / "classifier.pth"))
    head = model.network.head.weight.clone()
    model.init_weights()
    own, theirs = model.network.encoder.state_dict(), classifier.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    assert torch.equal(model.network.head.weight, head)


def test_starting_without_weights_keeps_those_of_the_network():
    model = segmentor(dict(name="vm_unet_test"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(network=dict(name="vm_unett")), "`network` needs the `name` .* got 'vm_unett': did you mean vm_unet"),
        (dict(network=dict(name="vmamba_test")), "`network` is vmamba_test, which maps no image to a map of classes"),
        (dict(network=dict(name="umamba_3d_test")), "`network` is umamba_3d_test, which maps no image"),
        (dict(network=dict(type="torch.nn.Identity")), "a Identity without `num_classes`"),
        (dict(network=dict(name="vm_unet_test", activation=True)), "`network.activation` is set: expected logits"),
        (
            dict(network=dict(name="vm_unet_test"), loss_decode=dict(type="DiceLoss")),
            "`loss_decode` has a DiceLoss with use_sigmoid=True: set it False",
        ),
        (dict(checkpoint="a.pth", encoder="b.pth"), "`checkpoint` and `encoder` are set: expected one"),
        (dict(encoder="b.pth"), "`encoder` is set: Levels has none that is a VMamba's"),
        (dict(test_cfg=dict(mode="slide")), "expected mode='whole', or mode='slide', crop_size and stride"),
        (dict(test_cfg=dict(mode="hole")), "`test_cfg` is {'mode': 'hole'}: expected"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        segmentor(**arguments)


# A step and a test of every packaged config. Sizes and widths are divided, all else is the config's.

SMALL = {
    "vm_unet": dict(name="vm_unet_test"),
    "umamba_bot_2d": dict(name="umamba_2d_test", where="bottleneck", features=(8, 16, 32)),
}


@pytest.mark.parametrize("tta", [False, True], ids=["", "views"])
@pytest.mark.parametrize("name", CONFIGS)
def test_trains_a_step_and_tests(name, tta, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, "pretty_text", property(str))  # the formatting takes longer than the step
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cfg = load_config(name)
    classes = max(cfg.model.network.num_classes, 2)
    root = dense_data.slices(tmp_path / "data", classes)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline):
        _resize(pipeline, (64, 64))
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=min(2, loader.batch_size))
        loader.dataset.data_root = str(root)
    cfg.model.data_preprocessor.size = (64, 64)
    cfg.model.network.update(SMALL[cfg.model.network.name])
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1)
    cfg.default_hooks.checkpoint.pop("save_best")
    trained, checkpoint = train(cfg, work_dir=tmp_path / "run"), tmp_path / "run" / "iter_1.pth"
    moments = torch.load(checkpoint, weights_only=True)["optimizer"]["state"].values()
    assert len(moments) == len(list(trained.parameters()))  # every parameter got a gradient
    assert all(value.isfinite().all() for one in moments for value in one.values())
    metrics = evaluate(cfg, checkpoint, work_dir=tmp_path / "test", out=tmp_path / "out", tta=tta)
    assert {"mDice", "mIoU", "aAcc"} <= metrics.keys() and 0 < metrics["aAcc"] < 100
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_outputs_are_those_of_the_classes():
    model = segmentor(dict(type="Levels", num_classes=3))
    model.expect_classes(("sky", "tree", "road"))
    with pytest.raises(ConfigError, match="Levels of 3 classes, the data has 2: sky, tree"):
        model.expect_classes(("sky", "tree"))
    segmentor(dict(type="Levels", num_classes=1)).expect_classes(("skin", "lesion"))  # one logit, for a sigmoid


def _resize(node, size: tuple[int, int]) -> None:
    if isinstance(node, dict):
        if node.get("type") == "Resize":
            node["scale"] = size
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            _resize(item, size)


@pytest.mark.parametrize("name", CONFIGS)
def test_networks_of_the_configs(name):
    cfg = load_config(name)
    network = dict(cfg.model.network)
    with torch.device("meta"):
        model = timm.create_model(network.pop("name"), **network)
    classes = cfg.train_dataloader.dataset.get("metainfo", {}).get("classes", range(9))
    assert max(model.num_classes, 2) == len(classes)
    sides = cfg.model.data_preprocessor.size
    assert all(side % multiple == 0 for side, multiple in zip(sides, model.multiples, strict=True))
