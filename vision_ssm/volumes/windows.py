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
            along their last axis (the axial one after MONAI's `Orientationd` to RAS). -1 is the image's own size.
        overlap: of neighbouring windows, a fraction of their size.
        sw_batch_size: windows that go through the network at a time.
        device: of the stitched volume, that of the image by default; "cpu" saves memory of the GPU.
        flips: spatial axes of the window; probabilities are the mean over all combinations of flips.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        device: str | None = None,
        flips: Sequence[int] = (),
    ):
        if len(roi_size) not in (2, 3):
            raise ValueError(f"`roi_size` is {tuple(roi_size)}: expected two or three sizes")
        if not 0 <= overlap < 1:
            raise ValueError(f"`overlap` is {overlap}: expected a fraction from 0 up to, not including, 1")
        if not set(flips) <= set(range(len(roi_size))):
            raise ValueError(f"`flips` is {tuple(flips)}: expected axes below {len(roi_size)}")
        self.roi_size, self.overlap, self.sw_batch_size = tuple(roi_size), overlap, sw_batch_size
        self.device, self.flips = device, tuple(flips)
        self._padded: set[tuple[int, ...]] = set()  # sizes that the log has

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
        if size not in self._padded and any(a < b for a, b in zip(size, self.roi_size, strict=True)):
            self._padded.add(size)
            print_log(f"an image of {size} is smaller than the window {self.roi_size}: padded with 0", logger="current")
        return sliding_window_inference(
            image.float(),
            self.roi_size,
            self.sw_batch_size,
            lambda windows: self._probabilities(windows, network),
            overlap=self.overlap,
            mode="gaussian",
            device=self.device,
        )

    def _probabilities(self, windows: Tensor, network: Network) -> Tensor:
        combinations = [
            [axis + 2 for axis in axes]
            for number in range(len(self.flips) + 1)
            for axes in itertools.combinations(self.flips, number)
        ]
        total = None
        for axes in combinations:
            logits = network(windows.flip(axes) if axes else windows)
            logits = logits if isinstance(logits, Tensor) else logits[0]
            one = torch.softmax(logits.float(), 1)
            one = one.flip(axes) if axes else one
            total = one if total is None else total.add_(one)
        return total / len(combinations)
