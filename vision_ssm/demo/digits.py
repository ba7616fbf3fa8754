"""Train a small backbone on scikit-learn's handwritten digits (1,797 scans of 8x8 pixels) and test it.

Everything of an epoch (order, distortions, stochastic depth) follows from the seed and the epoch's number, so a run
that was killed and resumed ends with the same bits as one that was not.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from ..checkpoints import CheckpointError, check_state_dict, read
from ..errors import InputError
from ..files import write_atomically
from ..models import SequenceBackbone

__all__ = ["Digits", "Recipe", "Run", "create", "evaluate", "load_digits", "train"]

_WAY_ON = "choose another folder, or --restart"
IMAGE_SIZE = 32  # each scanned pixel becomes one token of a backbone with stride 4


@dataclass(frozen=True)
class Recipe:
    """What a run depends on; two runs of equal recipes give equal results on one machine."""

    model: str = "vmamba_test"
    epochs: int = 40
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    drop_path_rate: float = 0.05
    warmup_epochs: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in [-1, 1] and labels (n,), two thirds to train and one to test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The digits that scikit-learn ships, split by class with a fixed seed.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('the digits need scikit-learn: pip install "vision-ssm[demo]"') from error
    data = load()
    parts = train_test_split(data.images, data.target, test_size=1 / 3, stratify=data.target, random_state=0)
    train_x, test_x = (torch.from_numpy(x).float().unsqueeze(1) / 8 - 1 for x in parts[:2])
    train_y, test_y = (torch.from_numpy(y).long() for y in parts[2:])
    return Digits(train_x, train_y, test_x, test_y)


def create(recipe: Recipe) -> nn.Module:
    """The recipe's model for one-channel images and ten classes."""
    kwargs = dict(num_classes=10, in_chans=1, drop_path_rate=recipe.drop_path_rate)
    if isinstance(timm.create_model(recipe.model, device="meta"), SequenceBackbone):
        kwargs |= dict(img_size=IMAGE_SIZE, patch_size=4)  # its patches and position table are made for one size
    return timm.create_model(recipe.model, **kwargs)


def _upsample(images: Tensor) -> Tensor:
    return F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)


def _distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Upsampled images, turned by up to 12 degrees, scaled by up to 10 % and shifted by up to a scanned pixel."""
    n = len(images)

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * limit

    angle, scale, shift = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.25, 2)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    grid = F.affine_grid(
        torch.cat([matrix, shift.unsqueeze(2)], 2), (n, 1, IMAGE_SIZE, IMAGE_SIZE), align_corners=False
    )
    # Outside the scan is paper, -1; grid_sample fills with 0.
    return F.grid_sample(_upsample(images) + 1, grid, align_corners=False) - 1


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Predicted labels of test images."""
    model.eval()
    return torch.cat([model(_upsample(part)).argmax(1) for part in images.split(batch_size)])


class Run:
    """A training run in a folder: `checkpoint.pt` after every epoch, resumed from there."""

    def __init__(self, recipe: Recipe, data: Digits, folder: str | Path):
        self.recipe, self.data = recipe, data
        self.checkpoint = Path(folder) / "checkpoint.pt"
        torch.manual_seed(recipe.seed)
        self.model = create(recipe)
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.95)
        )
        self.steps = math.ceil(len(data.train_images) / recipe.batch_size)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, sched="cosine", num_epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs,
            warmup_lr=1e-5, min_lr=1e-5, step_on_epochs=False, updates_per_epoch=self.steps,
        )  # fmt: skip
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False if there is none.

        Raises:
            CheckpointError: the checkpoint is of another recipe, or none of this job.
        """
        if not self.checkpoint.is_file():
            return False
        state, file = read(self.checkpoint), self.checkpoint
        if lacking := [key for key in ("recipe", "model", "optimizer", "history") if key not in state]:
            raise CheckpointError(f"{file} is no checkpoint of digits, without {', '.join(lacking)}: {_WAY_ON}")
        if state["recipe"] != asdict(self.recipe):
            raise CheckpointError(f"{file} is of another run ({state['recipe']}): {_WAY_ON}")
        self._check(state)
        self.model.load_state_dict(state["model"])
        # The rates follow from the recipe and the step.
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]["state"]})
        self.history = state["history"]
        return True

    def _check(self, state: Mapping) -> None:
        """Compare the parts of a checkpoint with the run."""

        def refuse(part: str, expected: str) -> NoReturn:
            raise CheckpointError(f"{self.checkpoint} is damaged: `{part}` is not {expected}: {_WAY_ON}")

        weights = state["model"]
        if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
            refuse("model", "a state dict")
        check_state_dict(weights, self.model.state_dict(), self.model, self.checkpoint)
        found = state["optimizer"].get("state") if isinstance(state["optimizer"], Mapping) else None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if not isinstance(found, Mapping) or set(found) != set(range(len(parameters))):
            refuse("optimizer", "the state of each parameter")
        for i, parameter in enumerate(parameters):
            moments = [found[i].get(key) for key in ("exp_avg", "exp_avg_sq")] if isinstance(found[i], Mapping) else []
            step = found[i].get("step") if moments else None
            if not isinstance(step, Tensor) or step.numel() != 1:
                refuse("optimizer", "the state of AdamW")
            if not all(isinstance(m, Tensor) and m.shape == parameter.shape for m in moments):
                refuse("optimizer", "the state of parameters of these shapes")
        history = state["history"]
        if not isinstance(history, list) or not 0 < len(history) <= self.recipe.epochs:
            refuse("history", f"a list of 1 to {self.recipe.epochs} epochs")
        if not all(
            isinstance(e, dict) and all(isinstance(e.get(k), float) for k in ("loss", "accuracy")) for e in history
        ):
            refuse("history", "the loss and the accuracy of each epoch")

    def save(self) -> None:
        """Write the checkpoint."""
        state = dict(
            recipe=asdict(self.recipe),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=self.history,
        )
        write_atomically(self.checkpoint, lambda path: torch.save(state, path))

    def train_epoch(self) -> dict[str, float]:
        """One epoch over the training part, then the accuracy on the test part."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + self.epoch)
        torch.manual_seed(self.recipe.seed * 100_003 + self.epoch)
        self.model.train()
        total = 0.0
        order = torch.randperm(len(self.data.train_images), generator=generator)
        for step, batch in enumerate(order.split(self.recipe.batch_size)):
            self.scheduler.step_update(self.epoch * self.steps + step)
            images, labels = _distort(self.data.train_images[batch], generator), self.data.train_labels[batch]
            loss = F.cross_entropy(self.model(images), labels, label_smoothing=0.1)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            total += loss.item() * len(batch)
        correct = evaluate(self.model, self.data.test_images) == self.data.test_labels
        self.history.append(dict(loss=total / len(order), accuracy=correct.float().mean().item()))
        return self.history[-1]


def train(run: Run) -> Iterator[dict[str, float]]:
    """Train what is left of a run, saving after every epoch; yields loss and test accuracy of each.

    Raises:
        InputError: the training diverged; the last checkpoint is the one before.
    """
    while run.epoch < run.recipe.epochs:
        result = run.train_epoch()
        if not math.isfinite(result["loss"]):
            raise InputError(
                f"the training diverged in epoch {run.epoch}: choose a smaller learning rate than {run.recipe.lr:g}"
            )
        run.save()
        yield result
