"""Pickles read as data: no function or class of Python is looked up, called or changed, whatever the file says.

`pickletools` of the standard library takes the stream apart into opcodes; here they act on plain containers alone.
A name in the file means what a table of ours gives for it, and an `Inert` object otherwise: calling one makes another,
and its attributes and entries go nowhere. Memory and time are bounded by the length of the file and by `_MOST`.
"""

import io
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from .error import CheckpointError, shown

__all__ = ["Inert", "Meaning", "NumberKind", "as_dict", "as_set", "check_nesting", "load_plain"]

# Opcodes in a pickle, and values in what it describes if everything that is shared is counted each time. A checkpoint
# of a thousand tensors with its optimiser has about 100 000. A container, for which a byte asks, counts as several.
_MOST = 3_000_000
_CONTAINER = 4
_DEEPEST = 100
# Numbers as keys can be chosen to collide, which makes a dict quadratic: whole ones that are far from zero, complex
# ones, and the parts of tuples unless they are few and small.
_LARGEST_KEY = 2**60
_MOST_PARTS, _LARGEST_PART = 4, 2**16


class Inert:
    """Stands for what is no plain data; it keeps the name of that and nothing else."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{shown(self.kind)}>"


class Meaning(Inert):
    """What a name of the file means where it is known: a function of ours on plain values."""

    __slots__ = ("call",)

    def __init__(self, kind: str, call: Callable[..., Any]):
        super().__init__(kind)
        self.call = call


class NumberKind(Inert):
    """A NumPy number's type as its code, "f8"; None where the bytes are in the other order."""

    __slots__ = ("code",)

    def __init__(self, code: str):
        super().__init__("numpy.dtype")
        self.code = code

    def build(self, state: tuple) -> None:
        """Take the order of the bytes from the state that NumPy stores."""
        if state[1] == ">":
            self.code = None


class _Clamped:
    """A file of which no more can be asked than it holds: readers allocate what they are asked for."""

    def __init__(self, file: BinaryIO):
        self.file, self.readline, self.tell = file, file.readline, file.tell
        here = file.tell()
        self.end = file.seek(0, io.SEEK_END)
        file.seek(here)

    def read(self, count: int) -> bytes:
        return self.file.read(count if count < 4096 else min(count, self.end - self.file.tell()))


def load_plain(file: BinaryIO, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]) -> Any:
    """The next pickle of a file as plain values; the file stands behind it then.

    Args:
        file: where the pickle begins.
        names: (module, name) to what it means: a `Meaning`, or a value.
        persistent: of a persistent id, a plain value, what it refers to.

    Raises:
        CheckpointError: the stream is longer than any honest one, or asks for what no data needs.
        Exception: of any kind, where the stream is damaged.
    """
    return _Machine(names, persistent).run(_Clamped(file))


class _Machine:
    def __init__(self, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]):
        self.names, self.persistent = names, persistent
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self, file: _Clamped) -> Any:
        stack, memo = self.stack, self.memo
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count + self.copied > _MOST:
                raise CheckpointError("it describes more objects than a checkpoint has")
            name = opcode.name
            if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
                self.copied += _CONTAINER
            elif name in _LITERALS:
                stack.append(argument)
            elif name in _GETS:
                stack.append(memo[argument])
            elif name in _PUTS:
                memo[_key(argument)] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                _ACTIONS[name](self, argument)
        raise CheckpointError("it ends too early")

    # Parts of the stack

    def since_mark(self) -> list:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list:
        if len(self.stack) < count:
            raise CheckpointError("it is damaged")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple(self.last(count)))

    # Containers

    def append(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Inert):
            raise CheckpointError("it is damaged")

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            target.update(as_dict(zip(items[::2], items[1::2], strict=True)))
        elif not isinstance(target, Inert):
            raise CheckpointError("it is damaged")

    def add_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is set:
            target.update(as_set(items))
        elif not isinstance(target, Inert):
            raise CheckpointError("it is damaged")

    def dict_since_mark(self) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.set_items(items)

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    # Names and what is made of them

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise CheckpointError("it is damaged")
        known = self.names.get((module, name))
        self.stack.append(Inert(f"{module}.{name}") if known is None else known)

    def call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Meaning) and type(arguments) is tuple:
            self.copied += sum(len(one) for one in arguments if isinstance(one, (str, bytes, list, tuple, set, dict)))
            self.stack.append(function.call(*arguments))
        else:
            self.stack.append(Inert(function.kind if isinstance(function, Inert) else "object"))

    def call_last(self, count: int) -> None:
        function, arguments, *_ = self.last(count)
        self.call(function, arguments)

    def call_since_mark(self) -> None:
        function, *arguments = self.since_mark()
        self.call(function, tuple(arguments))

    def instance(self, names: str) -> None:
        arguments = self.since_mark()
        self.name(*names.split(" ", 1))
        self.call(self.stack.pop(), tuple(arguments))

    def build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], NumberKind):
            self.stack[-1].build(state)

    def refer(self, identity: Any) -> None:
        self.stack.append(self.persistent(identity))


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_LITERALS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
     "BINBYTES8", "BYTEARRAY8")
)  # fmt: skip
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


def _refused(machine: _Machine, _) -> None:
    raise CheckpointError("it refers to data outside of the file")


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.since_mark() and None,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "DICT": lambda m, _: m.dict_since_mark(),
    "FROZENSET": lambda m, _: m.stack.append(frozenset(as_set(m.since_mark()))),
    "APPEND": lambda m, _: m.append(m.last(1)),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "ADDITEMS": lambda m, _: m.add_items(m.since_mark()),
    "GLOBAL": lambda m, names: m.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.last(2)),
    "INST": lambda m, names: m.instance(names),
    "OBJ": lambda m, _: m.call_since_mark(),
    "REDUCE": lambda m, _: m.call_last(2),
    "NEWOBJ": lambda m, _: m.call_last(2),
    "NEWOBJ_EX": lambda m, _: m.call_last(3),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, identity: m.refer(identity),
    "BINPERSID": lambda m, _: m.refer(m.stack.pop()),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda m, code: m.stack.append(Inert(f"extension {code}"))),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), _refused),
}


def as_dict(items: Mapping | Iterable) -> dict:
    """A dict of the pairs, or of the items of a mapping, if all keys can be keys."""
    pairs = items.items() if isinstance(items, Mapping) else items
    return {_key(key): value for key, value in pairs}


def as_set(items: Iterable) -> set:
    """A set, if all items can be in one."""
    return {_key(item) for item in items}


def _key(value: Any) -> Any:
    """`value`, if it can be a key at no more than its own cost."""
    if type(value) is tuple:
        if len(value) > _MOST_PARTS or not all(_is_small(part) for part in value):
            raise CheckpointError("it has a tuple as a key that is longer, or of larger numbers, than any honest one")
    elif type(value) is int and abs(value) >= _LARGEST_KEY:
        raise CheckpointError("it has a whole number as a key that is larger than any honest one")
    elif not (value is None or isinstance(value, (bool, int, float, str, bytes, Inert))):
        raise CheckpointError(f"it has a {type(value).__name__} as a key")
    return value


def _is_small(part: Any) -> bool:
    if isinstance(part, int):
        return abs(part) < _LARGEST_PART
    return part is None or isinstance(part, (str, bytes, Inert))


def check_nesting(content: Any) -> None:
    """What follows may walk through `content`: it must end, at a depth and after a number of values that are usual.

    Raises:
        CheckpointError: a container holds itself, containers are nested too deep, or they share so much that walking
            through them takes for ever.
    """
    size: dict[int, int] = {}
    depth: dict[int, int] = {}
    opened: set[int] = set()
    waiting = [content]
    while waiting:
        one = waiting[-1]
        inner = _containers(one)
        if id(one) not in opened and id(one) not in size:
            opened.add(id(one))
            if any(id(part) in opened and id(part) not in size for part in inner):
                raise CheckpointError("it holds itself")
            waiting += [part for part in inner if id(part) not in size]
            continue
        waiting.pop()
        if id(one) in size:
            continue
        size[id(one)] = 1 + (len(one) if _is_container(one) else 0) + sum(size[id(part)] for part in inner)
        depth[id(one)] = 1 + max((depth[id(part)] for part in inner), default=0)
        if size[id(one)] > _MOST or depth[id(one)] > _DEEPEST:
            raise CheckpointError("its values are nested in each other as in no checkpoint")


def _is_container(value: Any) -> bool:
    return type(value) in (dict, list, tuple, set, frozenset)


def _containers(value: Any) -> list:
    if not _is_container(value):
        return []
    return [part for part in (value.values() if type(value) is dict else value) if _is_container(part)]
