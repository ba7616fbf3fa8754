"""Checkpoint files written byte by byte: what no honest program writes."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

TRUE, NONE, EMPTY = b"\x88", b"N", b"}"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def group(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + group(*arguments) + b"R"


def entries(**values: bytes) -> bytes:
    return b"}" + b"".join(text(name) + value + b"s" for name, value in values.items())


def build(target: bytes, **attributes: bytes) -> bytes:
    """BUILD with attributes by `__dict__` and by `setattr`."""
    return target + group(entries(**attributes), entries(**attributes)) + b"b"


def storage(key: str = "0", count: bytes = whole(4), kind: bytes = named("torch", "FloatStorage")) -> bytes:
    return group(text("storage"), kind, text(key), text("cpu"), count) + b"Q"


def tensor(offset: int = 0, size=(4,), stride=(1,), of: bytes = b"") -> bytes:
    sizes, strides = (group(*map(whole, one)) for one in (size, stride))
    view = (of or storage(), whole(offset), sizes, strides, b"\x89", NONE)
    return call("torch._utils", "_rebuild_tensor_v2", *view)


def zipped(path: Path, body: bytes, records: dict[str, bytes] | None = None, **options) -> Path:
    """A file of PyTorch's format with `body` as its pickle, without PROTO and STOP."""
    records = {"0": struct.pack("<4f", 1, 2, 3, 4)} if records is None else records
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        for name, data in records.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


def legacy(path: Path, body: bytes, keys=(), rest: bytes = b"") -> Path:
    """A file of the format before PyTorch 1.6."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4))
    head = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(head + b"\x80\x02" + body + b"." + pickle.dumps(list(keys), 2) + rest)
    return path


def plain(body: bytes):
    """The pickle alone, as it is read."""
    from vision_ssm.checkpoints.pickles import load_plain
    from vision_ssm.checkpoints.tensors import NAMES

    return load_plain(io.BytesIO(body + b"."), NAMES, lambda identity: None)
