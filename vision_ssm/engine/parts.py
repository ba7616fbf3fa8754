"""What a checkpoint to resume from holds, looked through part by part before any of it is used."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from math import isfinite
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from torch import Tensor, nn

from ..checkpoints import CheckpointError, read
from .finite import non_finite
from .order import preserved, restore
from .saved import saved_checkpoints

__all__ = ["Parts", "check_content", "check_process", "latest_whole"]

_OLDER = "an older checkpoint may be"
_NEEDED = ("meta", "message_hub", "optimizer")


def _told(value) -> str:
    """A value in a message: what it is, or itself where that is short and plain."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return ascii(value)[:40]
    kinds = {dict: "a mapping", list: "a list", tuple: "a tuple", set: "a set", bytes: "bytes"}
    return next((text for kind, text in kinds.items() if isinstance(value, kind)), "an object")


def _is_number(value) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


class Parts:
    """Parts of one file, by kind.

    Every method takes the name and the value of a part, and returns the value.

    Raises:
        CheckpointError: the part is missing or of another kind; the message has the file, the part and the way on.
    """

    def __init__(self, file: str | Path):
        self.file = file

    def fail(self, problem: str, way: str = "to start from its weights give it as `load_from`"):
        """Raise the error."""
        raise CheckpointError(f"{self.file} cannot be resumed from: {problem}; {way}")

    def expect(self, good: bool, name: str, value, expected: str):
        """The value, if it is good."""
        if not good:
            self.fail(f"its `{name}` is {_told(value)}, expected {expected}")
        return value

    def mapping(self, name: str, value, of=None) -> Mapping:
        """Of text to anything, or to values that `of(name, value)` takes."""
        self.expect(isinstance(value, Mapping), name, value, "a mapping")
        for key, item in value.items():
            self.expect(isinstance(key, str), f"{name}: a key", key, "text")
            if of:
                of(f"{name}.{ascii(key)[1:-1]}", item)
        return value

    def sequence(self, name: str, value, of=None, length: int | None = None) -> Sequence:
        """Of anything, or of values that `of(name, value)` takes."""
        self.expect(isinstance(value, (list, tuple)), name, value, "a list")
        if length is not None and len(value) != length:
            self.fail(f"its `{name}` has {len(value)} entries, expected {length}")
        for i, item in enumerate(value if of else ()):
            of(f"{name}[{i}]", item)
        return value

    def number(self, name: str, value) -> float:
        """A finite number, of 64 bits."""
        return self.expect(_is_number(value) and isfinite(value), name, value, "a number")

    def plain(self, name: str, value) -> object:
        """Numbers, text, and lists and mappings of such."""
        if isinstance(value, Mapping):
            return self.mapping(name, value, self.plain)
        if isinstance(value, (list, tuple)):
            return self.sequence(name, value, self.plain)
        good = value is None or isinstance(value, (bool, int, float, str))
        return self.expect(good, name, value, "a number or text")

    def count(self, name: str, value, most: int = 2**53) -> int:
        """A whole number from 0."""
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
        return self.expect(good, name, value, "a whole number from 0")

    def text(self, name: str, value) -> str:
        """Text."""
        return self.expect(isinstance(value, str), name, value, "text")

    def tensor(self, name: str, value) -> Tensor:
        """A tensor."""
        return self.expect(isinstance(value, Tensor), name, value, "a tensor")

    def like(self, name: str, value, own):
        """A plain value or a tensor of the kind (and length) that the run's own has."""
        if isinstance(own, Tensor):
            good = isinstance(value, Tensor) and value.shape == own.shape
            return self.expect(good, name, value, f"a tensor {tuple(own.shape)}")
        if isinstance(own, (list, tuple)):
            self.sequence(name, value, length=len(own))
            return type(own)(self.like(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(value, own, strict=True)))
        if own is None or isinstance(own, bool):
            return self.expect(
                value is None or isinstance(value, bool) or _is_number(value), name, value, "a plain value"
            )
        if isinstance(own, (int, float)):  # a best score is infinite before there is one
            return self.expect(_is_number(value), name, value, "a number")
        return self.expect(type(value) is type(own), name, value, f"a {type(own).__name__}")


def check_content(content: Mapping, file: str | Path, allowed: Set[str] = frozenset()) -> None:
    """Look at the kind of every part that a run which is resumed reads, whatever the run is.

    Args:
        content: of a file.
        file: its name, for the message.
        allowed: names of weights that may be infinite.

    Raises:
        CheckpointError: a part is missing, of another kind, or holds no finite numbers.
    """
    parts = Parts(file)
    if missing := [key for key in _NEEDED if key not in content]:
        parts.fail(f"it holds no {', '.join(missing)}")
    meta = parts.mapping("meta", content["meta"])
    for key in ("iter", "epoch"):
        parts.count(f"meta.{key}", meta.get(key))
    if meta.get("seed") is not None:
        parts.count("meta.seed", meta["seed"], 2**32 - 1)
    parts.mapping("state_dict", content.get("state_dict"), parts.tensor)
    if bad := non_finite(content["state_dict"], allowed=allowed):
        parts.fail(f"{', '.join(bad[:3])} {'is' if len(bad) == 1 else 'are'} not finite", _OLDER)
    if "ema_state_dict" in content:
        parts.mapping("ema_state_dict", content["ema_state_dict"], parts.tensor)
        averaged = allowed | {f"module.{name}" for name in allowed}
        if bad := non_finite(content["ema_state_dict"], "ema_state_dict", {f"ema_state_dict.{n}" for n in averaged}):
            parts.fail(f"{', '.join(bad[:3])} {'is' if len(bad) == 1 else 'are'} not finite", _OLDER)
    _check_hub(parts, content["message_hub"])
    parts.mapping("optimizer", content["optimizer"])
    if "param_schedulers" in content:
        schedulers = content["param_schedulers"]
        if isinstance(schedulers, Mapping):
            parts.mapping("param_schedulers", schedulers, lambda name, each: parts.sequence(name, each, parts.mapping))
        else:
            parts.sequence("param_schedulers", schedulers, parts.mapping)
    if "validated" in content:
        value = content["validated"]
        parts.expect(isinstance(value, bool), "validated", value, "True or False")
    if content.get("epoch_progress") is not None:
        progress = parts.mapping("epoch_progress", content["epoch_progress"])
        steps = parts.count("epoch_progress.steps", progress.get("steps"))
        done = parts.count("epoch_progress.done", progress.get("done"))
        parts.expect(
            done <= min(steps, meta["iter"]), "epoch_progress.done", done, f"at most {min(steps, meta['iter'])}"
        )
    if "setting" in content:
        setting = parts.mapping("setting", content["setting"], parts.plain)
        parts.mapping("setting.optimizers", setting.get("optimizers"), parts.mapping)
    if "process_states" in content:
        parts.sequence(
            "process_states", content["process_states"], lambda name, state: _check_process(parts, name, state)
        )


def _check_hub(parts: Parts, hub) -> None:
    parts.mapping("message_hub", hub)
    for key in ("log_scalars", "runtime_info", "resumed_keys"):
        parts.mapping(f"message_hub.{key}", hub.get(key))
    for key, value in hub["resumed_keys"].items():
        parts.expect(isinstance(value, bool), f"message_hub.resumed_keys.{key}", value, "True or False")
    for key, history in hub["log_scalars"].items():
        if isinstance(history, Mapping):  # otherwise an object of MMEngine's own checkpoints, which is left out
            name = f"message_hub.log_scalars.{key}"
            values = parts.tensor(f"{name}.history", history.get("history"))
            counts = parts.tensor(f"{name}.count", history.get("count"))
            good = values.ndim == 1 and values.shape == counts.shape and not values.is_complex()
            parts.expect(good, f"{name}.count", counts, "as many numbers as there are values")
            parts.expect(parts.count(f"{name}.max_length", history.get("max_length")) > 0, name, 0, "a length")
    for key, value in hub["runtime_info"].items():
        name = f"message_hub.runtime_info.{key}"
        if key.startswith("best_score"):  # which may be infinite, or a metric's tensor
            scalar = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            parts.expect(_is_number(scalar), name, value, "a number")
        elif (key.startswith("best_ckpt") or key == "last_ckpt") and value is not None:
            parts.text(name, value)
        elif key == "keep_ckpt_ids":
            parts.sequence(name, value, parts.count)
        elif key == "outdated_ckpts":
            parts.sequence(name, value, parts.text)


def _check_process(parts: Parts, name: str, state) -> None:
    parts.mapping(name, state)
    for key in ("gradients", "buffers"):
        parts.mapping(f"{name}.{key}", state.get(key), parts.tensor)
    with preserved():
        try:
            restore(state["random"])
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError):
            parts.fail(f"its `{name}.random` is no state of the generators of random numbers")


def check_process(parts: Parts, name: str, state: Mapping, model: nn.Module) -> None:
    """Compare the gradients and buffers of a process with a model's."""
    own = model.state_dict()
    for key in ("gradients", "buffers"):
        for tensor_name, value in state[key].items():
            where = f"{name}.{key}.{tensor_name}"
            parts.expect(tensor_name in own, where, value, f"a name of {type(model).__name__}'s")
            parts.like(where, value, own[tensor_name])


def latest_whole(runner) -> str | None:
    """The latest checkpoint of a run's folder that is not damaged, as its first process sees it.

    Raises:
        CheckpointError: there are some, and none is whole.
    """
    found: list[str | CheckpointError | None] = [None]
    if is_main_process():
        hook, note = runner.checkpoint_hook, Path(runner.work_dir) / "last_checkpoint"
        if hook is None:
            saved = saved_checkpoints(runner.work_dir)
        else:
            saved = saved_checkpoints(hook.folder(runner.work_dir), hook.filename_tmpl, note)
        try:
            found = [_first_whole(saved, runner.infinite, runner.logger.warning)]
        except CheckpointError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], CheckpointError):
        raise found[0]
    return found[0]


def _first_whole(saved: Iterable[Path], allowed: Set[str], warn: Callable[[str], None]) -> str | None:
    damaged: list[CheckpointError] = []
    for path in saved:
        try:
            check_content(read(path), path, allowed)
        except CheckpointError as error:
            warn(f"{error} -- looking for an older one")
            damaged.append(error)
            continue
        if damaged:
            warn(f"GOING ON FROM {path}: {len(damaged)} later checkpoint(s) cannot be used")
        return str(path)
    if damaged:
        raise CheckpointError(f"{damaged[0]} (nor can any other in that folder be resumed from)")
    return None
