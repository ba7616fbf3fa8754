"""`TimmFeatures` over every family: shapes, taps, norms, freezing, and the classifiers it starts from."""

import copy

import parity
import pytest
import timm
import torch
import torch.nn.functional as F

pytest.importorskip("mmcv")
import vision_ssm.openmmlab  # before mmseg and mmdet, which import mmcv's operators

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from timm.layers import DropPath, RmsNorm

from vision_ssm.checkpoints import CheckpointError
from vision_ssm.models import model_names
from vision_ssm.openmmlab import TimmFeatures

SMALL = model_names("*_test")
PLAIN = [name for name in SMALL if timm.create_model(name, device="meta").feature_info[-1]["module"][:6] == "blocks"]
STAGED = [name for name in SMALL if name not in PLAIN]
LAST = {name: 2 if name in PLAIN else 3 for name in SMALL}
each_model = pytest.mark.parametrize("name", SMALL)


def images(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def features(name: str, **kwargs) -> TimmFeatures:
    kwargs.setdefault("out_indices", tuple(range(LAST[name] + 1)))
    torch.manual_seed(0)
    return TimmFeatures(name, **kwargs)


def level(size: int, name: str, i: int) -> int:
    """Pixels of map i along a side: what each family does with a remainder."""
    if name == "vim_test":
        return size // 8
    if name == "local_vim_test":
        return -(-size // 8)
    size = -(-size // 4) if name == "vmamba_test" else size // 4  # padded convolutions, or whole patches
    for _ in range(i):
        size = -(-size // 2)
    return size


@each_model
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (67, 93)])
def test_shapes(name, size):
    model = features(name, out_norm=True).eval()
    with torch.no_grad():
        maps = model(images(*size))
    assert isinstance(maps, tuple)
    expected = [(2, c, level(size[0], name, i), level(size[1], name, i)) for i, c in enumerate(model.num_channels)]
    assert [tuple(one.shape) for one in maps] == expected


@each_model
@pytest.mark.parametrize("out_norm", [False, True])
def test_no_parameter_is_unused(name, out_norm):
    for indices in {(0,), (0, 1), (1,), (LAST[name],), tuple(range(LAST[name] + 1)), (-1,)}:
        model = features(name, out_indices=indices, out_norm=out_norm)
        maps = model(images())
        weights = torch.Generator().manual_seed(2)
        sum((one * torch.randn(one.shape, generator=weights)).sum() for one in maps).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == [], indices
        assert len(maps) == len(model.num_channels) == len(indices)
        assert list(model.out_norms) == [str(i % (LAST[name] + 1)) for i in indices] * out_norm


@each_model
def test_subsets_are_the_same_maps(name):
    everything, some = features(name).eval(), features(name, out_indices=(0, 2)).eval()
    some.load_state_dict({k: v for k, v in everything.state_dict().items() if k in some.state_dict()})
    with torch.no_grad():
        all_maps, maps = everything(images(48, 64)), some(images(48, 64))
    for found, expected in zip(maps, (all_maps[0], all_maps[2]), strict=True):
        torch.testing.assert_close(found, expected)


@each_model
def test_output_norm_is_a_layer_norm_of_channels(name):
    plain, normed = features(name).eval(), features(name, out_norm=True).eval()
    for norm in normed.out_norms.values():
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    body = {k: v for k, v in normed.state_dict().items() if not k.startswith("out_norms.")}
    plain.load_state_dict(body)
    with torch.no_grad():
        for raw, found, norm in zip(plain(images()), normed(images()), normed.out_norms.values(), strict=True):
            expected = F.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], norm.weight, norm.bias, eps=1e-5)
            torch.testing.assert_close(found, expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize("tap", ["mixer", "stream"])
@pytest.mark.parametrize("name", PLAIN)
def test_taps(name, tap):
    model = features(name, out_indices=(0, 2), tap=tap).eval()
    seen = {}
    for i in (0, 2):
        block = model.model.blocks[i]
        block.mixer.register_forward_hook(lambda module, args, out, i=i: seen.update({f"mixer{i}": out}))
        block.norm.register_forward_hook(lambda module, args, out, i=i: seen.update({f"stream{i}": args[0]}))
    with torch.no_grad():
        maps = model(images(64, 48))
    for i, found in zip((0, 2), maps, strict=True):
        tokens = seen[f"mixer{i}"] + (seen[f"stream{i}"] if tap == "stream" else 0)
        torch.testing.assert_close(found, tokens.transpose(1, 2).reshape(2, 32, 8, 6))


@each_model
def test_drop_path_is_passed_on(name):
    rates = [m.drop_prob for m in features(name, drop_path_rate=0.3).modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.3) and rates == sorted(rates)
    assert not any(isinstance(m, DropPath) for m in features(name).modules())


@each_model
@pytest.mark.parametrize("frozen", [-1, 0, 1, 2])
def test_frozen_stages(name, frozen):
    model = features(name, frozen_stages=frozen, drop_path_rate=0.1).train()
    body = model.model
    parts = [("patch_embed", body.patch_embed)] if name in PLAIN else [("stem", body.stem)]
    kind = "blocks" if name in PLAIN else "stages"
    parts += [(f"{kind}.{i}", stage) for i, stage in enumerate(getattr(body, kind))]
    expected = set()
    for i, (prefix, part) in enumerate(parts):
        if i <= frozen:
            expected |= {f"{prefix}.{n}" for n, _ in part.named_parameters()}
        assert all(module.training == (i > frozen) for module in part.modules())
    if name in PLAIN and frozen >= 0:
        expected.add("pos_embed")
    assert {n for n, p in body.named_parameters() if not p.requires_grad} == expected
    assert not any(module.training for module in model.eval().modules())
    model(images())[-1].sum().backward()
    assert all((p.grad is None) == (n in expected) for n, p in body.named_parameters())


def test_class_tokens_are_frozen_with_the_stem():
    model = features("vim_test", class_token="both_ends", frozen_stages=0)
    frozen = {n for n, p in model.model.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token", "tail_token"}


def test_frozen_stages_of_other_models():
    with pytest.raises(ValueError, match="`frozen_stages` is 1: resnet18 has no stem and stages"):
        TimmFeatures("resnet18", frozen_stages=1)


@each_model
def test_gradient_checkpointing_changes_no_gradient(name):
    gradients = []
    for with_cp in (False, True):
        model = features(name, out_norm=True, with_cp=with_cp).train()
        sum(one.square().sum() for one in model(images())).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for n, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], expected, rtol=1e-4, atol=1e-4)


@each_model
def test_copies_are_equal_and_apart(name):
    model = features(name, out_norm=True).eval()
    twin = copy.deepcopy(model)
    official = {n: torch.zeros_like(p) for n, p in model.state_dict().items()}
    twin.load_state_dict(official)
    assert all(not p.any() for p in twin.parameters())
    assert any(p.any() for p in model.parameters())


@pytest.mark.parametrize("library", ["mmseg", "mmdet", "mmengine"])
def test_registered(library):
    registry = __import__(f"{library}.registry", fromlist=["MODELS"]).MODELS
    built = registry.build(dict(type="TimmFeatures", model_name="vmamba_test", out_indices=[1]))
    assert isinstance(built, TimmFeatures) and vision_ssm.openmmlab.TimmFeatures is TimmFeatures


def test_models_of_timm():
    model = TimmFeatures("resnet18", out_indices=(1, 4), out_norm=True)
    assert [tuple(one.shape) for one in model(images())] == [(2, 64, 16, 16), (2, 512, 2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model_name="vmamba_tset"), "no model 'vmamba_tset' in timm: `vision-ssm list` shows"),
        (dict(model_name="vmamba_test", tap="mixer"), "`tap` is 'mixer': expected 'stream', or 'mixer' for a plain"),
        (dict(model_name="vim_test", out_indices=(0,), tap="sum"), "`tap` is 'sum'"),
        (dict(model_name="vmamba_test", out_indices=(2, 0)), r"`out_indices` is \(2, 0\): expected each once"),
        (dict(model_name="vim_test", out_indices=(1, 1)), r"`out_indices` is \(1, 1\): expected each once"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmFeatures(**arguments)


# Classification weights


def classifier(name: str, **kwargs) -> torch.nn.Module:
    """Weights that no initialisation would give."""
    model = timm.create_model(name, **kwargs).eval()
    values = {n: torch.from_numpy(parity.fill_value(n, tuple(v.shape))) for n, v in model.state_dict().items()}
    model.load_state_dict(values)
    return model


@pytest.mark.parametrize("name", [*SMALL, "resnet18"])
def test_starting_without_a_checkpoint_keeps_the_weights(name):
    model = TimmFeatures(name, out_indices=(0, 2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # as `pretrained=True` would, when the model is built
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("how", ["checkpoint", "init_cfg"])
def test_starts_from_a_classifier(name, how, tmp_path):
    whole = classifier(name)
    path = str(tmp_path / "classifier.pth")
    torch.save({"model": whole.state_dict()}, path)
    kwargs = dict(checkpoint=path) if how == "checkpoint" else dict(init_cfg=dict(type="Pretrained", checkpoint=path))
    model = features(name, out_indices=(0, 2), **kwargs).eval()  # the last stage is not needed
    before = model.model.stem[0].weight.clone()
    assert not torch.equal(before, whole.stem[0].weight)  # building loads nothing
    model.init_weights()
    with torch.no_grad():
        expected = whole.forward_intermediates(images(), indices=[0, 2], intermediates_only=True)
        for found, wanted in zip(model(images()), expected, strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("class_token", ["middle", False])
def test_class_token_is_left_out_with_its_row(class_token, tmp_path):
    whole = classifier("vim_test", class_token=class_token, global_pool="avg")
    path = tmp_path / "classifier.pth"
    torch.save(whole.state_dict(), path)
    model = features("vim_test", checkpoint=str(path))
    model.init_weights()
    table = whole.pos_embed.detach()
    expected = torch.cat([table[:, :32], table[:, 33:]], dim=1) if class_token else table
    assert expected.shape == (1, 64, 32)
    assert torch.equal(model.model.pos_embed, expected)
    assert model.model.cls_token is None and "model.cls_token" not in model.state_dict()
    for found, wanted in zip(model.model.blocks.parameters(), whole.blocks.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_position_table_is_resized(tmp_path):
    whole = classifier("vim_test")
    path = tmp_path / "classifier.pth"
    torch.save(whole.state_dict(), path)
    model = features("vim_test", img_size=(96, 128), checkpoint=str(path))
    model.init_weights()
    table = whole.pos_embed.detach()
    grid = torch.cat([table[:, :32], table[:, 33:]], dim=1).reshape(1, 8, 8, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (12, 16), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.model.pos_embed.detach(), expected)


def test_layer_norms_take_the_weights_of_rms_norms(tmp_path):
    whole = classifier("local_vim_test")
    path = tmp_path / "classifier.pth"
    torch.save(whole.state_dict(), path)
    model = features("local_vim_test", rms_norm=False, checkpoint=str(path))
    for block in model.model.blocks:
        torch.nn.init.normal_(block.norm.bias)
    model.init_weights()
    for block, source in zip(model.model.blocks, whole.blocks, strict=True):
        assert isinstance(source.norm, RmsNorm) and isinstance(block.norm, torch.nn.LayerNorm)
        assert torch.equal(block.norm.weight, source.norm.weight) and not block.norm.bias.any()


def test_other_classifiers_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    for other, model, named in (
        ("vmamba_test", features("vanilla_vmamba_test", checkpoint=str(path)), "unexpected: stem.3.weight"),
        ("vim_test", features("vmamba_test", checkpoint=str(path)), "missing: stem.1.weight"),
        ("vmamba_test", features("vim_test", checkpoint=str(path)), "missing: pos_embed"),
    ):
        torch.save(classifier(other).state_dict(), path)
        with pytest.raises(CheckpointError, match=rf"other.pth does not fit .*{named}"):
            model.init_weights()
    torch.save(classifier("vmamba_test").state_dict() | {"stages.9.blocks.0.norm.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected: stages\.9\.blocks\.0\.norm\.weight"):
        features("vmamba_test", checkpoint=str(path)).init_weights()


def test_models_of_timm_start_from_classifiers_too(tmp_path):
    whole = classifier("resnet18")
    path = tmp_path / "classifier.pth"
    torch.save(whole.state_dict(), path)
    model = TimmFeatures("resnet18", out_indices=(1, 3), checkpoint=str(path)).eval()
    model.init_weights()
    with torch.no_grad():
        expected = whole.forward_intermediates(images(), indices=[1, 3], intermediates_only=True)
        for found, wanted in zip(model(images()), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_no_checkpoint():
    with pytest.raises(CheckpointError, match="no published weights of vmamba_test are known"):
        features("vmamba_test", checkpoint=True).init_weights()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        features("vmamba_test", checkpoint="nowhere.pth").init_weights()


GOLDEN = {
    "vim_tiny": "vim_tiny_patch16_224",
    "vmamba_tiny_s1l8": "vmamba_tiny_s1l8",
    "vmamba_vanilla_tiny": "vanilla_vmamba_tiny",
    "localmamba_local_vim_tiny": "local_vim_tiny",
    "localmamba_local_vssm_tiny": "local_vmamba_tiny",
}


@pytest.mark.parametrize("golden", GOLDEN)
def test_published_layouts(golden, tmp_path):
    """A published classifier's names find their places, each tensor once."""
    state_dict = {name: torch.zeros(shape) for name, shape in parity.load(golden)["state_dict"].items()}
    for i, name in enumerate(state_dict):
        state_dict[name] += i + 1
    path = tmp_path / "published.pth"
    torch.save({"model": state_dict}, path)
    indices = (0, 1) if "vssm" in golden or "vmamba" in golden else (0, 5)
    model = TimmFeatures(GOLDEN[golden], out_indices=indices, checkpoint=str(path))
    model.init_weights()
    kept = {float(value) for p in model.parameters() for value in p.detach().unique()}
    dropped = ["cls_token", "head.", "norm_f.", "classifier."]
    if "vssm" in golden or "vmamba" in golden:  # the downsampling between the stages belongs to the later one
        dropped += ["layers.1.downsample", "layers.2.", "layers.3."]
    else:
        dropped += [f"layers.{i}." for i in range(6, 24)]
    assert kept == {i + 1 for i, name in enumerate(state_dict) if not name.startswith(tuple(dropped))}


def test_true_is_the_published_file(monkeypatch):
    asked = []
    monkeypatch.setattr("vision_ssm.openmmlab.backbone.read_state_dict", lambda source, *_: asked.append(source) or {})
    model = TimmFeatures("vmamba_tiny_s1l8", checkpoint=True)
    assert asked == []  # not when it is built
    with pytest.raises(CheckpointError, match="missing: stem"):
        model.init_weights()
    assert asked == [timm.get_pretrained_cfg("vmamba_tiny_s1l8").url] and asked[0].startswith("https://")
