"""Whole volumes through networks that take a window: overlapping windows, axial slices, flips."""

import itertools
from collections.abc import Callable, Sequence

import torch
from mmengine.logging import print_log
from monai.inferers import sliding_window_inference
from torch import Tensor

__all__ = ["SlidingWindows"]

Network = Callable[[Tensor], Tensor | Sequence[Tensor]]


class SlidingWindows:
    """Class probabilities of an image of any size, from overlapping windows with Gaussian weights.

    Each window's probabilities are added to the stitched volume as soon as they are there, so that memory grows with
    the volume and not with the number of windows.

    Args:
        roi_size: of a window: three sizes; two for a 2D network, which sees pictures whole and volumes slice by slice
            along their last axis (the axial one after MONAI's `Orientationd` to RAS). -1 or None is the image's own
            size, padded to what the network takes (`multiples`).
        overlap: of neighbouring windows, a fraction of their size.
        sw_batch_size: windows that go through the network at a time.
        device: of the stitched volume, that of the image by default; "cpu" saves memory of the GPU.
        flips: spatial axes of the window; probabilities are the mean over all combinations of flips. Or those
            combinations themselves: `[(), (0,), (0, 1)]`.

    Attributes:
        multiples: of which the window's sides are to be, where they are the image's; None if any do.

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(
        self,
        roi_size: Sequence[int | None],
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        device: str | None = None,
        flips: Sequence[int] | Sequence[Sequence[int]] = (),
    ):
        if not isinstance(roi_size, Sequence) or len(roi_size) not in (2, 3):
            raise ValueError(f"`roi_size` is {roi_size}: expected two or three sizes")
        sizes = tuple(-1 if side is None else side for side in roi_size)
        if not all(isinstance(side, int) and (side == -1 or side > 0) for side in sizes):
            raise ValueError(f"`roi_size` is {tuple(roi_size)}: expected sizes of 1 or more, or -1 for the whole side")
        if not isinstance(overlap, (int, float)) or not 0 <= overlap < 1:
            raise ValueError(f"`overlap` is {overlap}: expected a fraction from 0 up to, not including, 1")
        if not isinstance(sw_batch_size, int) or sw_batch_size < 1:
            raise ValueError(f"`sw_batch_size` is {sw_batch_size}: expected a number of windows, 1 or more")
        self.roi_size, self.overlap, self.sw_batch_size = sizes, overlap, sw_batch_size
        self.device, self.views = device, _views(flips, len(sizes))
        self.multiples: Sequence[int] | None = None
        self._padded: set[tuple[int, ...]] = set()  # sizes that the log has

    def window(self, size: Sequence[int]) -> tuple[int, ...]:
        """The window's sides for an image of a size."""
        multiples = self.multiples or [1] * len(self.roi_size)
        sides = zip(self.roi_size, size, multiples, strict=True)
        return tuple(-(-whole // unit) * unit if side == -1 else side for side, whole, unit in sides)

    def __call__(self, image: Tensor, network: Network) -> Tensor:
        """Probabilities (batch, classes, *size) in float32.

        Args:
            image: (batch, channels, *size), of two or three spatial axes.
            network: (windows, channels, *roi_size) to logits; of several outputs the first one counts.

        Raises:
            ValueError: a 3D network cannot see a picture.
        """
        axes = image.ndim - 2
        if axes < len(self.roi_size):
            raise ValueError(f"windows of {len(self.roi_size)} axes do not fit an image of {axes}")
        if axes == len(self.roi_size):
            return self._stitched(image, network)
        depth = image.shape[-1]
        slices = image.movedim(-1, 1).flatten(0, 1)  # (batch * depth, channels, height, width)
        return self._stitched(slices, network).unflatten(0, (-1, depth)).movedim(1, -1)

    def _stitched(self, image: Tensor, network: Network) -> Tensor:
        size = tuple(image.shape[2:])
        window = self.window(size)
        if size not in self._padded and any(a < b for a, b in zip(size, window, strict=True)):
            self._padded.add(size)
            print_log(f"an image of {size} is smaller than the window {window}: padded with 0", logger="current")
        return sliding_window_inference(
            image.float(),
            window,
            self.sw_batch_size,
            lambda windows: self._probabilities(windows, network),
            overlap=self.overlap,
            mode="gaussian",
            device=self.device,
        )

    def _probabilities(self, windows: Tensor, network: Network) -> Tensor:
        total = None
        for view in self.views:
            axes = [axis + 2 for axis in view]
            logits = network(windows.flip(axes) if axes else windows)
            logits = logits if isinstance(logits, Tensor) else logits[0]
            one = torch.softmax(logits.float(), 1)
            one = one.flip(axes) if axes else one
            total = one if total is None else total.add_(one)
        return total / len(self.views)


def _views(flips: Sequence[int] | Sequence[Sequence[int]], axes: int) -> list[tuple[int, ...]]:
    """Axes that are flipped together, of each view."""
    views = [tuple(view) for view in flips] if flips and not isinstance(flips[0], int) else None
    if not {axis for view in views or [flips] for axis in view} <= set(range(axes)):
        raise ValueError(f"`flips` is {tuple(flips)}: expected axes below {axes}")
    if views is None:
        views = [view for number in range(len(flips) + 1) for view in itertools.combinations(flips, number)]
    return views
