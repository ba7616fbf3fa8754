"""A plans file whose fields are of another kind: each is named."""

import copy

import pytest
from nnunet.plan import configuration, flat

from vision_ssm.medical import plan_arguments
from vision_ssm.nnunet import rewrite_plans

ODD = (None, True, -1, 10**9, 1.5, float("nan"), "", "os.system", {}, {"a": 1}, [], [None], ["x"], [-1], [[[]]])
PRESENT = dict(plans_name="p", configurations={"2d": configuration(2, 32)})
FLAT = dict(plans_name="p", configurations={"2d": flat(2, 32)})
SIZES = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder")
PLACES = [
    (PRESENT, ("configurations",)),
    (PRESENT, ("configurations", "2d")),
    (PRESENT, ("configurations", "2d", "patch_size")),
    (PRESENT, ("configurations", "2d", "architecture")),
    (PRESENT, ("configurations", "2d", "architecture", "arch_kwargs")),
    *((PRESENT, ("configurations", "2d", "architecture", "arch_kwargs", size)) for size in SIZES),
    (PRESENT, ("configurations", "2d", "architecture", "arch_kwargs", "strides", 1)),
    (PRESENT, ("configurations", "2d", "architecture", "arch_kwargs", "kernel_sizes", 1, 0)),
    *((FLAT, ("configurations", "2d", key)) for key in ("conv_kernel_sizes", "pool_op_kernel_sizes")),
    *((FLAT, ("configurations", "2d", key)) for key in ("UNet_base_num_features", "unet_max_num_features")),
]


def _changed(plans: dict, place: tuple, value) -> dict:
    plans = copy.deepcopy(plans)
    node = plans
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return plans


@pytest.mark.parametrize(
    ("plans", "place"),
    PLACES,
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_field_of_another_kind_is_named(plans, place):
    for value in ODD:
        changed = _changed(plans, place, value)
        for use in (lambda: rewrite_plans(changed, "umamba_bot"), lambda: plan_arguments(changed, "2d")):  # noqa: B023
            with pytest.raises(ValueError) as caught:
                use()
            message = str(caught.value)
            assert type(caught.value) is ValueError and len(message) < 400, (place, value)
            assert not any(word in message for word in ("object", "attribute", "subscript", "unhashable")), message


@pytest.mark.parametrize("key", ["previous_stage", "next_stage", "inherits_from"])
def test_references_of_another_kind_are_named(key):
    for value in (3, {"a": 1}, [3], [["2d"]], "none"):
        with pytest.raises(ValueError, match=f"{key}|configuration"):
            rewrite_plans(_changed(PRESENT, ("configurations", "2d", key), value), "umamba_bot")


def test_a_plan_names_layers_of_pytorch_alone(tmp_path, monkeypatch):
    """A name elsewhere is not even imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside.py").write_text("import os\nos.mkdir('made')\nConv2d = 3\n")
    for key in ("conv_op", "norm_op", "nonlin", "dropout_op"):
        place = ("configurations", "2d", "architecture", "arch_kwargs", key)
        with pytest.raises(ValueError, match=f"`{key}` of the plan is beside.Conv2d"):
            rewrite_plans(_changed(PRESENT, place, "beside.Conv2d"), "umamba_bot")
    assert not (tmp_path / "made").exists()


def test_a_network_beyond_measure_is_refused():
    place = ("configurations", "2d", "architecture", "arch_kwargs", "features_per_stage")
    with pytest.raises(ValueError, match="thousand millions of weights"):
        rewrite_plans(_changed(PRESENT, place, [65536, 65536, 65536]), "umamba_bot")
