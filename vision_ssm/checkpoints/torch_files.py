"""PyTorch's checkpoint files: the zip archives of today and the format before 1.6, read as data.

Sizes are compared with the file before memory is taken, and the checksums of an archive's records with their bytes.
"""

import io
import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .error import CheckpointError, shown
from .pickles import Inert, load_plain
from .tensors import NAMES, Storage, StorageKind

__all__ = ["read_torch_file"]

_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_CHUNK = 2**18  # stays in the cache between reading and its checksum


def read_torch_file(path: Path) -> Any:
    """The content of a file that `torch.save` wrote: tensors on the CPU, plain values, and `Inert` objects.

    Raises:
        CheckpointError: it is damaged, or asks for what it does not hold.
        Exception: of any kind, where the file is no such file.
    """
    with open(path, "rb") as file:
        begin = file.read(len(_ZIP))
        file.seek(0)
        return _Archive(file).content() if begin == _ZIP else _Legacy(file).content()


def _fill(data: Tensor, file: BinaryIO) -> int:
    """Read the bytes of a storage where the file stands; their checksum."""
    view, checksum = memoryview(data.numpy()), 0
    for start in range(0, len(view), _CHUNK):
        part = view[start : start + _CHUNK]
        if file.readinto(part) != len(part):
            raise CheckpointError("it ends too early")
        checksum = zlib.crc32(part, checksum)
    return checksum


class _File:
    """What both formats share: storages are declared by the pickle, and filled when all sizes are known to be right."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.storages: dict[str, Tensor] = {}

    def storage(self, kind: Any, key: Any, count: Any) -> Storage:
        if not isinstance(kind, StorageKind) or type(key) is not str or type(count) is not int or count < 0:
            raise CheckpointError("a storage in it is damaged")
        size = count * kind.dtype.itemsize
        if key not in self.storages:
            self.check_size(key, size)
            self.storages[key] = torch.empty(size, dtype=torch.uint8, device="cpu")
        if self.storages[key].numel() != size:
            raise CheckpointError(f"its storage {shown(key)} has two sizes")
        return Storage(self.storages[key], kind.dtype)

    def check_size(self, key: str, size: int) -> None:
        raise NotImplementedError


class _Archive(_File):
    """A zip archive: `data.pkl`, and a record of bytes for each storage."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.records: dict[str, zipfile.ZipInfo] = {}
        self.limits: dict[str, int] = {}  # where the next record begins
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            end = archive.start_dir
        ends = [entry.header_offset for entry in entries[1:]] + [end]
        for entry, limit in zip(entries, ends, strict=True):
            name = entry.filename.partition("/")[2]
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise CheckpointError(f"its record {shown(name)} is compressed or encrypted, as PyTorch writes none")
            if name in self.records:
                raise CheckpointError(f"it has two records {shown(name)}")
            if entry.file_size != entry.compress_size or entry.header_offset + 30 + entry.file_size > limit:
                raise CheckpointError(f"its record {shown(name)} overlaps the next")
            self.records[name], self.limits[name] = entry, limit
        self.checked = any(entry.CRC for entry in entries)  # torch.serialization.set_crc32_options can leave them out

    def content(self) -> Any:
        if "constants.pkl" in self.records:
            raise CheckpointError("it is a TorchScript program: expected a state dict")
        if "data.pkl" not in self.records:
            raise CheckpointError("it is a zip archive without the data.pkl of a PyTorch file")
        if self.bytes_of("byteorder", b"little").strip() != b"little" or sys.byteorder != "little":
            raise CheckpointError("its numbers are in the other byte order")
        content = load_plain(io.BytesIO(self.bytes_of("data.pkl")), NAMES, self.refer)
        for key, data in self.storages.items():
            self.read(f"data/{key}", data)
        return content

    def bytes_of(self, name: str, default: bytes = b"") -> bytes:
        if name not in self.records:
            return default
        data = torch.empty(self.records[name].file_size, dtype=torch.uint8, device="cpu")
        self.read(name, data)
        return data.numpy().tobytes()

    def read(self, name: str, data: Tensor) -> None:
        entry = self.records[name]
        self.file.seek(entry.header_offset)
        signature, named, extra = struct.unpack("<4s22xHH", self.file.read(30))
        if signature != _ZIP or self.file.tell() + named + extra + entry.file_size > self.limits[name]:
            raise CheckpointError(f"its record {shown(name)} is damaged")
        self.file.seek(named + extra, io.SEEK_CUR)
        if _fill(data, self.file) != entry.CRC and self.checked:
            raise CheckpointError(f"its record {shown(name)} is damaged: the checksum differs")

    def refer(self, identity: Any) -> Storage:
        tag, kind, key, _, count = identity
        if tag != "storage":
            raise CheckpointError("a storage in it is damaged")
        return self.storage(kind, key, count)

    def check_size(self, key: str, size: int) -> None:
        record = self.records.get(f"data/{key}")
        if record is None or record.file_size != size:
            raise CheckpointError(f"its storage {shown(key)} is missing or of another size")


class _Legacy(_File):
    """The format before PyTorch 1.6: pickles of a magic number, content and keys of storages; their bytes."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.declared = 0
        self.counts: dict[str, int] = {}

    def content(self) -> Any:
        magic, protocol, system = (self.pickle() for _ in range(3))
        if magic != _MAGIC or protocol != _PROTOCOL or type(system) is not dict or not system.get("little_endian"):
            raise CheckpointError("it is no file of PyTorch")
        content = load_plain(self.file, NAMES, self.refer)
        keys = self.pickle()
        if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(self.counts):
            raise CheckpointError("its storages are not those that it lists")
        for key in keys:
            (count,) = struct.unpack("<q", self.file.read(8))
            if count != self.counts[key]:
                raise CheckpointError(f"its storage {shown(key)} is of another size")
            _fill(self.storages[key], self.file)
        return content

    def pickle(self) -> Any:
        return load_plain(self.file, {}, lambda identity: Inert("object"))

    def refer(self, identity: Any) -> Inert:
        if identity[0] == "module":  # a class, with its source
            return Inert("class")
        tag, kind, key, _, count, view = identity
        if tag != "storage":
            raise CheckpointError("a storage in it is damaged")
        storage = self.storage(kind, key, count)
        self.counts[key] = count
        if view is None:
            return storage
        _, offset, length = view
        if any(type(one) is not int or one < 0 for one in (offset, length)) or offset + length > count:
            raise CheckpointError("a storage in it is damaged")
        width = storage.dtype.itemsize
        return Storage(storage.data[offset * width : (offset + length) * width], storage.dtype)

    def check_size(self, key: str, size: int) -> None:
        self.declared += size + 8
        if self.declared > self.size:
            raise CheckpointError("it ends too early")
