"""Rewritten plans differ from nnU-Net's in the network alone, and fit it."""

import copy
import json

import pytest
import timm
from nnunet.plan import configuration, flat, plans

from vision_ssm.cli import main
from vision_ssm.nnunet import architecture, rewrite_plans


def _without_network(given: dict) -> dict:
    kept = {key: value for key, value in given.items() if key not in ("plans_name", "configurations")}
    return kept | {
        name: {key: value for key, value in one.items() if key != "architecture"}
        for name, one in given["configurations"].items()
    }


def test_only_the_network_changes():
    given = plans()
    before = copy.deepcopy(given)
    new = rewrite_plans(given, "umamba_enc")
    assert given == before
    assert new["plans_name"] == "nnUNetUMambaEncPlans"
    assert _without_network(new) == _without_network(given)
    for name in ("2d", "3d_lowres", "3d_fullres"):
        ours, planned = (one["configurations"][name]["architecture"] for one in (new, given))
        assert ours["network_class_name"] == "vision_ssm.nnunet.UMambaEnc"
        patch = given["configurations"][name]["patch_size"]
        assert ours["arch_kwargs"] == planned["arch_kwargs"] | {"input_size": patch}
        assert ours["_kw_requires_import"] == planned["_kw_requires_import"]
    assert "architecture" not in new["configurations"]["3d_cascade_fullres"]  # it is inherited


def test_rewriting_twice_is_rewriting_once():
    once = rewrite_plans(plans(), "umamba_enc")
    assert rewrite_plans(once, "umamba_enc") == once
    assert rewrite_plans(once, "lma_unet") == rewrite_plans(plans(), "lma_unet")


def test_a_configuration_of_its_own_patch_gets_a_network_of_its_own():
    given = plans()
    given["configurations"]["small"] = {"inherits_from": "3d_fullres", "patch_size": [16, 16, 16]}
    new = rewrite_plans(given, "umamba_enc", configurations=["small"])
    assert list(new["configurations"]) == ["3d_fullres", "small"]
    assert new["configurations"]["small"]["architecture"]["arch_kwargs"]["input_size"] == [16, 16, 16]


def test_configurations_bring_those_that_they_refer_to():
    new = rewrite_plans(plans(), "umamba_bot", configurations=["3d_lowres"])
    assert list(new["configurations"]) == ["3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    assert list(rewrite_plans(plans(), "umamba_bot", configurations=["2d"])["configurations"]) == ["2d"]


def test_a_network_for_volumes_leaves_images_out():
    given = plans()
    given["configurations"] = {"2d": configuration(2, 32), "3d_fullres": configuration(3, 48)}
    new = rewrite_plans(given, "segmamba_test", "Mine")
    assert new["plans_name"] == "Mine" and list(new["configurations"]) == ["3d_fullres"]
    strides = configuration(3, 48)["architecture"]["arch_kwargs"]["strides"]
    assert new["configurations"]["3d_fullres"]["architecture"] == dict(
        network_class_name="vision_ssm.nnunet.Network",
        arch_kwargs=dict(name="segmamba_test", strides=strides),
        _kw_requires_import=[],
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_flat_plans_become_present_ones(dims):
    old = architecture("umamba_v1_enc", flat(dims, 16))
    kwargs = architecture("umamba_v1_enc", configuration(dims, 16))["arch_kwargs"]
    assert old["arch_kwargs"] == {key: kwargs[key] for key in old["arch_kwargs"]}
    new = rewrite_plans({"plans_name": "old", "configurations": {"a": flat(dims, 16)}}, "umamba_v1_enc")
    assert set(new["configurations"]["a"]) == {"data_identifier", "batch_size", "patch_size", "architecture"}


@pytest.mark.parametrize(("patch", "window"), [((320, 320), [5, 5]), ((40, 224, 192), [5, 7, 6])])
def test_lma_unet_gets_its_published_windows_for_its_published_patches(patch, window):
    dims = len(patch)
    one = configuration(dims, 0, 7 if dims == 2 else 6) | {"patch_size": list(patch)}
    if dims == 3:
        one["architecture"]["arch_kwargs"]["strides"] = [[1, 1, 1], [1, 2, 2], [2] * 3, [2] * 3, [2] * 3, [1, 2, 2]]
    assert architecture("lma_unet", one)["arch_kwargs"]["window"] == window


def test_rewritten_plans_make_the_same_network_in_timm():
    """What the command set of the network's own counts there, too."""
    new = rewrite_plans(plans(), "lma_unet", configurations=["3d_fullres"])
    window = new["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["window"]
    model = timm.create_model("lma_unet_3d", plans=new, device="meta")
    assert model.mixers[-1][0].period == tuple(window) != (5, 7, 6)
    with pytest.raises(ValueError, match="umamba_bot_3d takes no window, which the plan sets"):
        timm.create_model("umamba_bot_3d", plans=new, device="meta")


def test_plans_are_rewritten_from_one_network_to_another():
    """Arguments of the first that the second does not have are left out; what a foreign plan has is refused."""
    given = architecture("umamba_enc", configuration(3, 16))
    given["arch_kwargs"]["channel_tokens"] = False
    one = configuration(3, 16) | {"architecture": given}
    assert architecture("umamba_enc", one)["arch_kwargs"]["channel_tokens"] is False
    assert not {"channel_tokens", "input_size"} & architecture("lma_unet", one)["arch_kwargs"].keys()


def test_arguments_of_the_network_are_kept():
    given = configuration(3, 48)
    with pytest.raises(ValueError, match="choose `slices`"):
        architecture("segmamba", given)
    given["architecture"]["arch_kwargs"]["slices"] = [24, 12, 6, 3]
    assert architecture("segmamba", given)["arch_kwargs"]["slices"] == [24, 12, 6, 3]


@pytest.mark.parametrize(
    ("name", "dims", "strides"),
    [("swin_umamba", 2, [1, 2, 2, 2]), ("swin_umamba_d", 2, [1, 4, 2, 2]), ("nnmamba_nnunet", 3, [1, 2, 2, 2])],
)
def test_targets_fit_networks_with_levels_of_their_own(name, dims, strides):
    """They return logits at the strides of their papers' code: 1, 2, 4, 8 or 1, 4, 8, 16."""
    given = configuration(dims, 64, 5)
    found = architecture(f"{name}_test", given)["arch_kwargs"]["strides"]
    assert [stride[0] for stride in found[:-1]] == strides


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm_op", "torch.nn.BatchNorm3d", "InstanceNorm3d"),
        ("dropout_op", "torch.nn.Dropout3d", "expected None"),
        ("nonlin", "torch.nn.ReLU", "LeakyReLU"),
        ("conv_bias", False, "expected True"),
        ("conv_op", "torch.nn.Conv2d", "3 axes"),
        ("n_stages", 4, "4 stages, but 3 strides"),
        ("stem_channels", 16, "takes no stem_channels"),
        ("n_blocks_per_stage", [1, 1, 1], "both"),
    ],
)
def test_layers_that_the_network_has_not_are_refused(key, value, message):
    given = configuration(3, 16)
    given["architecture"]["arch_kwargs"][key] = value
    with pytest.raises(ValueError, match=message):
        architecture("umamba_bot", given)


@pytest.mark.parametrize(
    ("network", "given", "message"),
    [
        ("umamba_enc", configuration(3, 18), "multiples of"),
        ("segmamba", configuration(3, 24), "multiples of"),
        ("segmamba", configuration(2, 32), "3 dimensions, the plan 2"),
        ("umamba", configuration(3, 16), "no network 'umamba'"),
        ("medmamba_test", configuration(2, 32), "no network for segmentation"),
        ("umamba_enc", {"architecture": {}}, "patch_size"),
    ],
)
def test_networks_that_do_not_fit_are_refused(network, given, message):
    with pytest.raises(ValueError, match=message):
        architecture(network, given)


def test_files_that_are_no_plans_are_refused():
    with pytest.raises(ValueError, match="no plans file"):
        rewrite_plans({"labels": {}}, "umamba_enc")
    with pytest.raises(ValueError, match="3d_fulres"):
        rewrite_plans(plans(), "umamba_enc", configurations=["3d_fulres"])


def test_command(tmp_path, capsys):
    source = tmp_path / "nnUNetPlans.json"
    source.write_text(json.dumps(plans()))
    command = ["nnunet-plans", str(source), "--network", "umamba_enc"]
    assert main(command) == 0
    assert "-p nnUNetUMambaEncPlans\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "nnUNetUMambaEncPlans.json").read_text()) == rewrite_plans(plans(), "umamba_enc")
    assert main(command) == 2 and "--force" in capsys.readouterr().err
    named = [*command, "--configurations", "2d", "--out", str(tmp_path / "Mine.json")]
    assert main(named) == 0 and "left out: 3d_lowres" in capsys.readouterr().out
    assert json.loads((tmp_path / "Mine.json").read_text())["plans_name"] == "Mine"


def test_command_names_bad_input(tmp_path, capsys):
    source = tmp_path / "plans.json"
    source.write_text("{")
    for network, content, message in (
        ("umamba_enc", None, "no plans at"),
        ("umamba_enc", "{", "is no JSON"),
        ("umamba_enc", "{}", "no plans file"),
        ("resnet", json.dumps(plans()), "no network 'resnet'"),
    ):
        source.unlink(missing_ok=True)
        if content is not None:
            source.write_text(content)
        assert main(["nnunet-plans", str(source), "--network", network]) == 2
        assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["plans.json"]
