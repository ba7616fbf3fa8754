"""Which flips a training shows its network: those that tests may average over."""

from collections.abc import Iterator, Mapping, Sequence

from monai.transforms import Compose, OneOf, RandAxisFlipd, RandFlipd, SomeOf, SqueezeDimd, Transform

from .transforms import build_transforms

__all__ = ["trained_flips"]

View = frozenset[int]


def trained_flips(dataset: Mapping, axes: int) -> list[tuple[int, ...]]:
    """Axes of the window that are flipped together, of every view that training draws; that of no flip first.

    Args:
        dataset: config of the training's data set, or of a wrapper around some.
        axes: of the window, 2 or 3. Flips of slices across their plane are none of the window's.
    """
    views = {frozenset()}
    for transforms in _pipelines(dataset):
        steps = build_transforms(transforms).transforms
        views |= {view for view in _views(steps, {frozenset()}, axes) if max(view, default=0) < axes}
    return sorted((tuple(sorted(view)) for view in views), key=lambda view: (len(view), view))


def _pipelines(dataset: Mapping) -> Iterator[Sequence[Mapping]]:
    """`transforms` of a data set, or of those inside wrappers (repeated, concatenated)."""
    if dataset.get("transforms"):
        yield dataset["transforms"]
    for inner in (dataset.get("dataset"), *dataset.get("datasets", ())):
        if isinstance(inner, Mapping):
            yield from _pipelines(inner)


def _views(steps: Sequence[Transform], views: set[View], axes: int) -> set[View]:
    """Views after some steps, of those before; a second flip of an axis undoes the first."""
    for number, step in enumerate(steps):
        squeezed = any(isinstance(later, SqueezeDimd) for later in steps[number:])
        seen = max(axes, 3 if squeezed else axes)  # axes of the image at this step
        if isinstance(step, (OneOf, SomeOf)):
            views = views.union(*(_views([one], views, axes) for one in step.transforms))
        elif isinstance(step, Compose):
            views = _views(step.transforms, views, axes)
        elif isinstance(step, RandFlipd) and "image" in step.keys and step.prob > 0:
            asked = step.flipper.spatial_axis
            asked = range(seen) if asked is None else [asked] if isinstance(asked, int) else asked
            flip = frozenset(axis % seen for axis in asked)
            views = views | {view ^ flip for view in views}
        elif isinstance(step, RandAxisFlipd) and "image" in step.keys and step.prob > 0:
            views = views.union(*({view ^ {axis} for view in views} for axis in range(seen)))
    return views
