"""Safetensors files of this package: their metadata holds a digest of names, shapes and numbers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .error import CheckpointError

__all__ = ["read_safetensors", "safetensors_bytes"]

_DIGEST = "vision_ssm_sha256"


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of tensors, with a digest that `read_safetensors` compares.

    Args:
        tensors: names to tensors of any strides.
        metadata: further entries of the file's header.
    """
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    header = {"format": "pt", **(metadata or {}), _DIGEST: _digest(tensors)}
    return safetensors.torch.save(tensors, metadata=header)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU and in memory of their own.

    Raises:
        CheckpointError: the file has a digest of this package, and it is of other tensors.
        safetensors.SafetensorError: the file is damaged.
    """
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        digest = (file.metadata() or {}).get(_DIGEST)
    if digest is not None and digest != _digest(tensors):
        raise CheckpointError("it is damaged: its tensors are not those that were written (the digest differs)")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in the order of their names, each after its name, dtype and shape."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
