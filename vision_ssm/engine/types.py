"""What the `type` of a config may name."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine import registry as registries
from mmengine.registry import Registry
from mmengine.registry import registry as lookup
from mmengine.utils import get_object_from_string

__all__ = ["checked_types", "named_by"]


@contextmanager
def checked_types() -> Iterator[None]:
    """Within, a `type` is a registered name, or the dotted path of a class of a library.

    MMEngine's registries import whatever else a `type` says, and call it: "os.system" is a path, too. Here functions
    that are not registered, the standard library and names without a path are unknown to them.
    """
    before = lookup.get_object_from_string
    lookup.get_object_from_string = _named
    try:
        yield
    finally:
        lookup.get_object_from_string = before


def named_by(registry: Registry, kind) -> object | None:
    """What a `type` names, in the default scope or another that stands before it, or as a dotted path; None if there is
    no such thing."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(kind)


def _named(path: str):
    """The class of that path, or the registered function; None for anything else."""
    if "." not in path or _is_standard(path):
        return None
    found = get_object_from_string(path)
    if isinstance(found, type):
        return None if _is_standard(found.__module__) else found
    return found if any(found is known for known in _registered()) else None


def _is_standard(path: str) -> bool:
    return path.partition(".")[0] in sys.stdlib_module_names


def _registered() -> Iterator[object]:
    """Everything in MMEngine's registries and in those of the libraries on it."""
    left = [value for value in vars(registries).values() if isinstance(value, Registry)]
    while left:
        registry = left.pop()
        yield from registry.module_dict.values()
        left += registry.children.values()
