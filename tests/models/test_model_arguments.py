"""Arguments through timm, which drops those that are None: what None says, a value of its own says too."""

import pytest
import torch
from small_models import create, images

from vision_ssm.models.vim import VisionMamba

SMALL = dict(img_size=64, patch_size=8, dim=32, depth=3)


def test_a_causal_vim_by_name() -> None:
    """No output before a change of the image depends on it; the last token's does."""
    model = create("vim_test", bidirectional=False, class_token=False, global_pool="", num_classes=0)
    first, second = images(1), images(1)
    second[:, :, 32:] += 1  # the lower half: tokens 32 to 63
    changed = (model(first) - model(second)).abs().amax((0, 2)) > 0
    assert changed.tolist() == [token >= 32 for token in range(64)]
    torch.manual_seed(0)
    direct = VisionMamba(**SMALL, bidirectional=None, class_token=None, global_pool="", num_classes=0).eval()
    assert torch.equal(direct(first), model(first))


def test_no_gate_by_name() -> None:
    plain, gated = create("vanilla_vmamba_test", gate=False), create("vanilla_vmamba_test")
    widths = [model.stages[0].blocks[0].mixer.in_proj.out_features for model in (plain, gated)]
    assert widths == [32, 64] and torch.isfinite(plain(images())).all()


def test_no_class_token_by_name() -> None:
    name = "local_vim_tiny_middle_cls_token"
    model = create(name, class_token=False, device="meta")
    assert model.cls_token is None and model.rope


def test_one_number_for_all_stages() -> None:
    """The variant has lists of its own, which None through timm would keep."""
    sizes = dict(input_size=(64, 64, 64), kernels=3, strides=2, depths=1, decoder_depths=1)
    model = create("umamba_enc_3d", device="meta", **sizes)
    assert {block.conv1.kernel_size for stage in model.stages for block in stage} == {(3, 3, 3)}
    assert model.multiples == (32, 32, 32) and [len(stage) for stage in model.stages] == [1] * 6


WRONG = [
    ("vim_test", dict(bidirectional="v3"), "`bidirectional` is 'v3': expected False, 'v1' or 'v2'"),
    ("vim_test", dict(bidirectional=True), "`bidirectional` is True"),
    ("vim_test", dict(class_token="last"), "`class_token` is 'last'"),
    ("local_vim_test", dict(class_token="first"), "`class_token` is 'first'"),
    ("vanilla_vmamba_test", dict(gate=True), "`gate` is True: expected 'silu', 'linear' or False"),
    ("vmamba_test", dict(stem="patches"), "`stem` is 'patches': expected one of 'patch', 'conv'"),
    ("vmamba_test", dict(downsample="pool"), "`downsample` is 'pool': expected one of 'merge', 'conv3', 'conv2'"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_unknown_values(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **arguments)


SMALLEST = [("vim_test", dict(dynamic_img_size=True), 8), ("vanilla_vmamba_test", {}, 4), ("medmamba_test", {}, 32)]


@pytest.mark.parametrize(("name", "arguments", "side"), [*SMALLEST, ("vmamba_test", dict(downsample="conv2"), 29)])
def test_smallest_images(name: str, arguments: dict, side: int) -> None:
    model = create(name, **arguments)
    assert torch.isfinite(model(images(1, side, 2 * side + 1))).all()
    for small in (images(1, side - 1, 64), images(1, 64, side - 1)):
        for run in (model, model.forward_intermediates):
            with pytest.raises(ValueError, match=f"pixels: expected at least {side} a side"):
                run(small)
