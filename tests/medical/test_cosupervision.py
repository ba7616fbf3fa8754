"""The co-supervised losses against their formulas, written out in float64."""

import math

import pytest
import torch

from vision_ssm.medical import cosupervision as co

CLASSES, SIDES = 4, (5, 6)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, CLASSES, *SIDES, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.fixture
def labels():
    return torch.randint(CLASSES, (3, *SIDES), generator=torch.Generator().manual_seed(1))


def dice(logits, labels, smooth=1e-5):
    """Class by class."""
    p, losses = logits.softmax(1), []
    for c in range(CLASSES):
        y = (labels == c).double()
        overlap, total = (p[:, c] * y).sum(), (p[:, c] ** 2).sum() + (y**2).sum()
        losses.append(1 - (2 * overlap + smooth) / (total + smooth))
    return sum(losses) / CLASSES


def cross_entropy(logits, labels, ignored=-1):
    """Pixel by pixel."""
    values = [
        -logits.log_softmax(1)[b, labels[b, i, j], i, j]
        for b in range(len(labels)) for i in range(SIDES[0]) for j in range(SIDES[1]) if labels[b, i, j] != ignored
    ]  # fmt: skip
    return sum(values) / len(values)


def test_ramp_up():
    assert co.ramp_up(0) == co.ramp_up(149) == pytest.approx(0.1 * math.exp(-5))
    assert co.ramp_up(150 * 100) == pytest.approx(0.1 * math.exp(-5 * 0.25))
    assert co.ramp_up(150 * 200) == co.ramp_up(150 * 900) == pytest.approx(0.1)


def test_dice(logits, labels):
    torch.testing.assert_close(co.dice_loss(logits[0], labels), dice(logits[0], labels))
    perfect = torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1) * 100.0
    assert co.dice_loss(perfect, labels) < 1e-6


def test_consistency(logits):
    total = 0.0
    for b in range(3):
        means = [each[b].mean(dim=(1, 2)) for each in logits[:2]]
        total += ((means[0] / means[0].norm() - means[1] / means[1].norm()) ** 2).sum()
    torch.testing.assert_close(co.consistency_loss(*logits[:2]), total / (3 * CLASSES))
    assert co.consistency_loss(logits[0], 3 * logits[0]) < 1e-10


@pytest.mark.parametrize("labelled", [1, 2])
def test_semi(logits, labels, labelled):
    first, second, _ = logits
    expected = 2 * 0.5 * co.consistency_loss(first, second)
    for own, other in ((first, second), (second, first)):
        expected += 0.5 * (cross_entropy(own[:labelled], labels[:labelled]) + dice(own[:labelled], labels[:labelled]))
        expected += co.ramp_up(9000) * dice(own[labelled:], other[labelled:].argmax(1))
    torch.testing.assert_close(co.semi_mamba_unet_loss(first, second, labels[:labelled], step=9000), expected)


@pytest.mark.parametrize("labelled", [0, 3])
def test_semi_needs_both_kinds_of_images(logits, labels, labelled):
    with pytest.raises(ValueError, match=f"{labelled} of 3 images are labelled"):
        co.semi_mamba_unet_loss(*logits[:2], labels[:labelled], step=0)


def test_pseudo_labels_send_no_gradient(logits, labels):
    """The other network's classes are constants: one loss moves each network by its own terms alone."""
    first, second = (each.requires_grad_() for each in logits[:2])
    co.semi_mamba_unet_loss(first, second, labels[:1], step=30000, consistency=0.0).backward()
    (expected,) = torch.autograd.grad(0.1 * dice(first[1:], second[1:].argmax(1)), first)
    torch.testing.assert_close(first.grad[1:], expected[1:])


def test_scribbles(logits, labels):
    labels[:, :, 2:] = 4
    torch.testing.assert_close(co.scribble_loss(logits[0], labels), cross_entropy(logits[0], labels, ignored=4))
    nothing = co.scribble_loss(logits[0].requires_grad_(), torch.full_like(labels, 4))
    nothing.backward()
    assert nothing == 0 and (logits[0].grad == 0).all()


def test_mixed_pseudo_label(logits):
    for seed in range(5):
        low, high = sorted(torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist())
        mixed = sum(w * each.softmax(1) for w, each in zip((low, high - low, 1 - high), logits))
        found = co.mixed_pseudo_label(logits, torch.Generator().manual_seed(seed))
        assert torch.equal(found, mixed.argmax(1))


def test_weights_vary_from_step_to_step(logits):
    generator = torch.Generator().manual_seed(0)
    labels = [co.mixed_pseudo_label(logits, generator) for _ in range(5)]
    assert any(not torch.equal(labels[0], other) for other in labels[1:])


def test_weak(logits, labels):
    labels[:, :, 2:] = 4
    pseudo = co.mixed_pseudo_label(logits, torch.Generator().manual_seed(3))
    expected = sum(cross_entropy(each, labels, ignored=4) + dice(each, pseudo) for each in logits)
    found = co.weak_mamba_unet_loss(logits, labels, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected)
