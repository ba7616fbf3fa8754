"""What `list` and `info` say of every model."""

import json

import pytest
import timm

from vision_ssm import medical
from vision_ssm.cards import task
from vision_ssm.registry import model_names

SMALL = model_names("*_test")


@pytest.mark.parametrize("name", [*SMALL, "umamba_enc_3d", "vanilla_vmamba_tiny"])
def test_info_of_every_family(name, prints):
    about = json.loads(prints("info", name, "--json"))
    model = timm.create_model(name, device="meta")
    assert about["params"] == sum(p.numel() for p in model.parameters())
    if isinstance(model, medical.DenseNetwork):
        assert about["task"] == task(name)
        assert about["task"].endswith(f"{model.dims}D") or "video" in about["task"]
    else:
        assert about["task"] == "classification 2D"
    for key, value in about["arguments"].items():
        assert key not in model.variant or json.loads(json.dumps(model.variant[key])) == value


def test_arguments_of_a_variant_replace_the_defaults(prints):
    arguments = json.loads(prints("info", "nnmamba_cls_test", "--json"))["arguments"]
    assert arguments["channels"] == 8 and arguments["num_classes"] == 1


@pytest.mark.parametrize(
    ("words", "has", "has_not"),
    [
        ("3D", "umamba_enc_3d", "umamba_enc_2d"),
        ("3d Segmentation", "segmamba", "nnmamba_cls"),
        ("landmarks", "nnmamba_landmark", "nnmamba_seg"),
        ("video", "vivim", "vm_unet"),
        ("classification 2D", "medmamba_tiny", "nnmamba_cls"),
    ],
)
def test_list_by_task(words, has, has_not, prints):
    entries = json.loads(prints("list", "--task", words, "--json"))
    names = [entry["name"] for entry in entries]
    assert has in names and has_not not in names
    assert all(set(words.lower().split()) <= set(entry["task"].lower().split()) for entry in entries)


def test_list_of_no_task(fails):
    assert fails("list", "--task", "poetry").startswith("no model is for 'poetry': expected words of classification 2D")
    assert "got an empty text" in fails("list", "--task", "")
