"""Files that were written to do harm: they are read as data or refused, in the memory and time that they hold."""

import builtins
import collections
import os
import pickle
import random
import struct
import tracemalloc
import zipfile

import pytest
import safetensors.torch
import streams
import torch
from streams import EMPTY, NONE, TRUE, build, call, entries, group, named, storage, tensor, text, whole

from vision_ssm.checkpoints import CheckpointError, read, safetensors_bytes, unwrap

HONEST = {"model": {"w": torch.tensor([1.0, 2.0, 3.0])}}
FUNCTIONS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")


def _attack(path: str) -> dict[str, bytes]:
    """Each would write a file at `path`, or change this process."""
    system = named("os", "system") + group(text(f"touch {path}"))
    getter = call("builtins", "getattr", named("os", "sys"), text("modules"))
    return {
        "reduce": system + b"R",
        "newobj": system + b"\x81",
        "newobj_ex": system + EMPTY + b"\x92",
        "obj": b"(" + named("os", "system") + text(f"touch {path}") + b"o",
        "inst": b"(" + text(f"touch {path}") + b"ios\nsystem\n",
        "stack_global": text("os") + text("system") + b"\x93" + group(text(f"touch {path}")) + b"R",
        "extension": b"\x82\x01" + group(text(path)) + b"R",
        "getattr": getter + group(text(path)) + b"R",
        "eval": call("builtins", "eval", text(f"open({path!r}, 'w')")),
        "eval of a dotted name": call("collections", "abc.sys.modules", text("os")),
        "import": call("builtins", "__import__", text("os")),
        "class": build(call("collections", "OrderedDict"), __class__=named("builtins", "list")),
        "setattr": call("builtins", "setattr", named("torch", "Size"), text("x"), TRUE),
        "defaults": b"".join(build(named("torch._utils", f), __defaults__=group(TRUE)) + b"0" for f in FUNCTIONS)
        + NONE,
        "code": build(named("torch._utils", "_rebuild_tensor_v2"), __code__=NONE, __globals__=EMPTY, __dict__=EMPTY),
        "module": build(named("torch", "Size"), __module__=text(path), __name__=text(path)),
        "type": build(named("collections", "OrderedDict"), __init__=named("os", "system")),
        "item of a class": named("collections", "OrderedDict") + text("a") + TRUE + b"s",
        "items of a module": named("sys", "modules") + b"(" + text("os") + NONE + b"u",
        "append to a path": named("sys", "path") + text(path) + b"a",
        "environment": named("os", "environ") + text("VISION_SSM_HARM") + text("1") + b"s",
        "reduce of reduce": call("functools", "partial", named("os", "system"), text(f"touch {path}")) + b")R",
        "copyreg": call("copyreg", "add_extension", text("os"), text("system"), whole(1)),
        "dtype": build(named("torch", "float32"), x=TRUE),
        "rebuild": call(
            "torch._tensor", "_rebuild_from_type_v2", named("os", "system"), NONE, group(text(f"touch {path}")), NONE
        ),
        "bytes": call("torch.storage", "_load_from_bytes", text("x")),
        "hub": call("torch.hub", "load", text(path), text("x")),
    }


@pytest.mark.parametrize("kind", _attack(""))
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_nothing_outside_is_called_or_changed(tmp_path, monkeypatch, kind, form):
    monkeypatch.chdir(tmp_path)
    torch.save(HONEST, "honest.pth")
    before = {name: vars(torch._utils)[name].__dict__.copy() for name in FUNCTIONS}
    names = dict(vars(builtins)), dict(vars(torch.Size)), dict(vars(collections.OrderedDict)), dict(os.environ)
    path = str(tmp_path / "written")
    body = entries(x=_attack(path)[kind], y=named("os", "system"), z=text("end"))
    evil = streams.zipped(tmp_path / "evil.pth", body) if form == "zip" else streams.legacy(tmp_path / "evil.pth", body)
    try:
        assert read(evil)["z"] == "end"
    except CheckpointError as error:
        assert "evil.pth cannot be read as a checkpoint" in str(error)
    assert sorted(os.listdir(tmp_path)) == ["evil.pth", "honest.pth"]
    assert before == {name: vars(torch._utils)[name].__dict__ for name in FUNCTIONS}
    assert names == (
        dict(vars(builtins)),
        dict(vars(torch.Size)),
        dict(vars(collections.OrderedDict)),
        dict(os.environ),
    )
    for load in (lambda path: torch.load(path, weights_only=True), read):
        assert load("honest.pth")["model"]["w"].tolist() == [1, 2, 3]


def test_what_legacy_files_say_of_a_source_is_not_written(tmp_path, monkeypatch):
    """PyTorch's own reader writes a patch beside itself where the source of a class differs."""
    monkeypatch.chdir(tmp_path)
    target = build(named("torch._utils", "_rebuild_tensor"), __name__=text("written"), dump_patches=TRUE)
    source = group(text("module"), target, text("x.py"), text("a line\nanother")) + b"Q"
    assert read(streams.legacy(tmp_path / "evil.pth", entries(a=source)))["a"].kind == "class"
    assert os.listdir(tmp_path) == ["evil.pth"]


def _laughs(start: bytes, again: bytes) -> bytes:
    """Thirty levels, each twice in the next."""
    levels = [
        b"(" + (start if not i else b"hAhA".replace(b"A", bytes([i - 1]))) + again + b"q" + bytes([i])
        for i in range(30)
    ]
    return b"0".join(levels)


GREEDY = {
    "a memo of a hundred million": b"}r" + struct.pack("<I", 100_000_000),
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 2**40),
    "text that is not there": b"\x8d" + struct.pack("<Q", 2**62),
    "a long number that is not there": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a frame that is not there": b"\x95" + struct.pack("<Q", 2**60) + EMPTY,
    "a byte array that is not there": b"\x96" + struct.pack("<Q", 2**50),
    "nested lists": b"]" * 20_000 + b"a" * 19_999,
    "nested tuples": b")" + b"\x85" * 20_000,
    "lists of themselves, twice": _laughs(b"", b"l"),
    "tuples of themselves, twice": _laughs(b"", b"t"),
    "such tuples as a key": EMPTY + _laughs(b"", b"t") + NONE + b"s",
    "a dict in itself": b"}q\x00" + text("model") + b"h\x00s",
    "a list in itself": b"]q\x00h\x00a",
    "colliding keys": EMPTY + b"".join(whole(i * (2**61 - 1)) + NONE + b"s" for i in range(1, 9)),
    "colliding tuples": EMPTY + group(whole(2), whole(5 * 2**57)) + NONE + b"s",
    "a long tuple as a key": EMPTY + group(*map(whole, range(5))) + NONE + b"s",
    "colliding complex numbers": EMPTY + b"".join(
        call("builtins", "complex", whole(-1_000_003 * i), whole(i)) + NONE + b"s" for i in range(1, 9)
    ),
    "colliding places in the memo": EMPTY + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1, 9)),
    "a set of copies": text("x" * 100_000) + b"q\x00" + b"".join(
        b"0" + call("_codecs", "encode", b"h\x00", text("latin1")) for _ in range(100)
    ),
    "a digit string": b"I" + b"9" * 100_000 + b"\n",
    "a list as a key": EMPTY + b"]" + NONE + b"s",
    "an empty stack": b"0000",
    "a mark that is not there": b"t",
    "an unknown opcode": b"\xff",
    "a buffer of another process": b"\x97",
    "a shape that overflows": entries(a=tensor(size=(2**40, 2**40), stride=(0, 0))),
    "a view of all memory": entries(a=tensor(size=(2**40,), stride=(0,))),
    "more than there is": entries(a=tensor(size=(5,))),
    "an offset beyond": entries(a=tensor(offset=1)),
    "a negative offset": entries(a=tensor(offset=-1)),
    "a negative size": entries(a=tensor(size=(-4,))),
    "a negative stride": entries(a=tensor(offset=3, stride=(-1,))),
    "more strides than sizes": entries(a=tensor(stride=(1, 1))),
    "a storage of negative size": entries(a=tensor(of=storage(count=whole(-1)))),
    "a storage of 2^62": entries(a=tensor(of=storage(count=whole(2**62)))),
    "a storage of another size": entries(a=tensor(of=storage(count=whole(3)))),
    "a storage that is not there": entries(a=tensor(of=storage(key="7"))),
    "a storage by a path": entries(a=tensor(of=storage(key="../data.pkl"))),
    "a storage of no class": entries(a=tensor(of=storage(kind=named("os", "system")))),
    "a persistent id of one part": group(text("storage")) + b"Q",
    "a persistent id of text": b"Pstorage\n",
    "a persistent dict": EMPTY + b"Q",
    "no storage": entries(a=tensor(of=EMPTY)),
}  # fmt: skip
READ = {"a memo of a hundred million", "a frame that is not there", "a set of copies"}


@pytest.mark.parametrize("kind", GREEDY)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_memory_and_time_are_those_of_the_file(tmp_path, kind, form):
    path = tmp_path / "evil.pth"
    body = GREEDY[kind]
    if "stor" in kind or form == "legacy":
        streams.legacy(path, body.replace(b"tQ", b"NtQ"), "0", struct.pack("<q4f", 4, 1, 2, 3, 4))
    if form == "zip":
        streams.zipped(path, body)
    tracemalloc.start()
    try:
        content = read(path)
        assert kind in READ
        unwrap(content)
    except CheckpointError as error:
        assert str(error).startswith(f"{path} ") and len(str(error)) < 400
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 120 * 2**20  # of the process's own objects; PyTorch asks for memory after the sizes are compared


def _archive(path, *records, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(tmp_path):
    """Compressed, doubled and overlapping records, and those that lie about their size."""
    good = (("a/data.pkl", b"\x80\x02" + entries(w=tensor()) + b"."), ("a/data/0", struct.pack("<4f", 1, 2, 3, 4)))
    path = tmp_path / "model.pth"
    assert read(_archive(path, *good))["w"].tolist() == [1, 2, 3, 4]
    whole_file = path.read_bytes()
    for content, words in (
        ((good[0], ("a/data/0", bytes(2**20))), "another size"),
        ((*good, ("a/constants.pkl", b"")), "TorchScript"),
        ((good[1],), r"without the data\.pkl"),
        ((*good, good[1]), "two records data/0"),
        ((*good, ("a/byteorder", b"big")), "byte order"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read(_archive(path, *content))
    with pytest.raises(CheckpointError, match="compressed"):
        read(_archive(path, *good, compression=zipfile.ZIP_DEFLATED))
    entry = whole_file.rindex(b"PK\x01\x02")  # of data/0 in the directory
    for offset, value, words in ((42, 0, "overlaps|damaged"), (16, 7, "checksum"), (20, 2**31, "overlaps")):
        changed = bytearray(whole_file)
        changed[entry + offset : entry + offset + 4] = struct.pack("<I", value)
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=words):
            read(path)


@pytest.mark.parametrize("where", ["weights", "pickle"])
def test_a_damaged_record_is_found_by_its_checksum(tmp_path, where):
    path = tmp_path / "model.pth"
    torch.save({"model": {"w": torch.ones(1000)}, "note": "a word"}, path)
    data = bytearray(path.read_bytes())
    place = data.index(b"\x80?\x00\x00\x80?") if where == "weights" else data.index(b"a word")
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"model\.pth cannot be read as a checkpoint: its record .*checksum differs"
    ):
        read(path)


def test_files_without_checksums(tmp_path):
    """PyTorch can leave them out."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(HONEST, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(tmp_path / "model.pth")["model"]["w"].tolist() == [1, 2, 3]


def test_names_are_shown_escaped_and_cut(tmp_path):
    """What a file says reaches a terminal as text."""
    name = "\x1b[2J\n\r" + "x" * 5000
    torch.save({name: torch.ones(1), "b": torch.ones(1)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError) as caught:
        unwrap(read(tmp_path / "model.pth"))
    assert str(caught.value).isprintable() and r"\x1b[2J\n\r" in str(caught.value) and len(str(caught.value)) < 400


def test_damage_at_random(tmp_path):
    """Bytes flipped, cut out and put in: read or refused, and nothing else."""
    content = {
        "model": {"a": torch.rand(3, 4), "b": torch.arange(6.0)[1:5], "c": torch.tensor(1)},
        "n": [1.5, (2, "x")],
    }
    files = []
    for name, options in (("new.pth", {}), ("old.pth", {"_use_new_zipfile_serialization": False})):
        torch.save(content, tmp_path / name, **options)
        files.append((tmp_path / name).read_bytes())
    files.append(safetensors_bytes(content["model"]))
    pick, path, refused = random.Random(0), tmp_path / "model.pth", 0
    for _ in range(600):
        data = bytearray(pick.choice(files))
        for _ in range(pick.choice((1, 3))):
            place, much = pick.randrange(len(data)), pick.randrange(1, 20)
            change = pick.randrange(3)
            if change:
                data[place : place + much * (change - 1)] = pick.randbytes(much)
            else:
                del data[place:]
                data += b"x"
        path.write_bytes(data)
        try:
            unwrap(read(path))
        except CheckpointError as error:
            refused += 1
            assert str(error).isprintable()
    assert 400 < refused < 600


@pytest.mark.parametrize("kind", ["sparse", "quantised", "csr", "nested"])
def test_other_forms_of_tensors(tmp_path, kind):
    value = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }[kind]()
    for content in ({"model": {"w": value}}, {"w": value, "v": torch.ones(1)}):
        torch.save(content, tmp_path / "model.pth")
        for source in (tmp_path / "model.pth", content):
            with pytest.raises(CheckpointError, match=r"w is a (sparse|quantised|nested) tensor, expected a dense"):
                unwrap(read(source), source)


def test_views_and_kinds_of_honest_files(tmp_path):
    """Shared storages, strides, empty and expanded tensors, dtypes, subclasses of tensors, both formats."""
    base = torch.arange(12.0)
    content = {
        "strided": base.view(3, 4).T,
        "part": base[3:7],
        "step": base[::5],
        "empty": base[:0].view(0, 3),
        "scalar": torch.tensor(2.5),
        "expanded": torch.ones(1).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "buffer": torch.nn.Buffer(torch.ones(2)),
        **{str(kind): torch.ones(3).to(kind) for kind in (torch.bfloat16, torch.int8, torch.bool, torch.complex64)},
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "unsigned": torch.ones(3).to(torch.uint16),
    }
    for old in (False, True):
        if old:
            del content["float8"], content["unsigned"]
        torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=not old)
        ours = read(tmp_path / "model.pth")
        for name, value in content.items():
            assert ours[name].dtype == value.dtype and ours[name].stride() == value.stride(), name
            assert torch.equal(ours[name].to(torch.complex64), value.to(torch.complex64)), name
        assert ours["strided"].untyped_storage().data_ptr() == ours["part"].untyped_storage().data_ptr()


def test_safetensors_of_this_package_carry_a_digest(tmp_path):
    weights = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    data, path = safetensors_bytes(weights, {"model": "x"}), tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert all(torch.equal(value, weights[name]) for name, value in read(path).items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["model"] == "x" and len(file.metadata()["vision_ssm_sha256"]) == 64
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="the digest differs"):
        read(path)
    path.write_bytes(data.replace(b'"a"', b'"c"'))
    with pytest.raises(CheckpointError, match="the digest differs"):
        read(path)
    safetensors.torch.save_file({"a": torch.ones(2)}, path)  # of another program
    assert read(path)["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 5000,
        b'{"a":' * 2000,
        b"{}",
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        b"\xff" * 9,
    ],
)
@pytest.mark.parametrize("length", [None, 2**62, 0])
def test_hostile_safetensors_headers(tmp_path, header, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as a checkpoint"):
        read(path)


def test_a_pickle_of_another_program(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(CheckpointError, match=r"model\.pkl cannot be read as a checkpoint"):
        read(tmp_path / "model.pkl")
