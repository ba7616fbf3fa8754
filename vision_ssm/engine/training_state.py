"""The state of optimisers and schedules that a resumed run goes on with: what the config says, where the file was."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.optim import OptimWrapper, _ParamScheduler
from torch import Tensor
from torch.optim import Optimizer

from .parts import Parts
from .schedule import advance, scheduled_options
from .setting import plain_values

__all__ = ["OptimizerPlan"]

_ANEW = "`resume_optimizer=False` goes on with an optimizer that starts anew"
# What schedulers count; everything else in their state is what a config says.
_COUNTED = ("last_step", "_global_step", "_last_value", "best", "num_bad_epochs", "cooldown_counter")


class OptimizerPlan:
    """The states that one optimiser and its schedulers get from a file, checked; `apply` loads them.

    The config's options hold. Those that it has not changed go on from the file, since some optimisers write to them.
    Schedules that it has not changed go on from the file too. Changed ones are where they would be if the run had had
    them from its first step; those that follow the validation (`ReduceOnPlateauLR`) go on from the file's rate.

    Args:
        parts: of the file.
        name: of this part of the file.
        saved: the file's state of the optimiser, or None to leave it as it starts.
        wrapper: the run's own, fresh.
        schedulers: the run's own of it, fresh.
        states: the file's of these, if it holds any.
        before: the `setting` of the optimiser that the file was saved with; files of others have none.
        now: the run's own.

    Raises:
        CheckpointError: the file's are of another kind, of another optimiser or of other parameters.
    """

    def __init__(
        self,
        parts: Parts,
        name: str,
        saved: Mapping | None,
        wrapper: OptimWrapper,
        schedulers: Sequence[_ParamScheduler],
        states: Sequence[Mapping] | None,
        before: Mapping | None,
        now: Mapping,
    ):
        self.parts, self.name, self.wrapper, self.schedulers = parts, name, wrapper, schedulers
        self.before, self.scheduled = before, scheduled_options(schedulers)
        self.saved_groups: Sequence[Mapping] = ()
        self.own = wrapper.state_dict()
        self.states = self._scheduler_states(states, now) if saved is not None else None
        self.replay = self.states is None
        self.optimizer_state = None if saved is None else self._optimizer_state(saved)

    # Schedules

    def _scheduler_states(self, states: Sequence[Mapping] | None, now: Mapping) -> list[dict] | None:
        own = [plain_values(one.state_dict()) for one in self.schedulers]
        self.unchanged = False
        counts = [{*mine} & {*_COUNTED} for mine in own]
        if states is None or len(states) != len(own) or any(n - {*s} for n, s in zip(counts, states, strict=True)):
            return None
        if self.before is not None:
            self.unchanged = self.before.get("schedulers") == now["schedulers"]
        else:
            self.unchanged = all(
                state.get(key) == value
                for state, mine in zip(map(plain_values, states), own, strict=True)
                for key, value in mine.items()
                if key not in _COUNTED
            )
        if not self.unchanged and not any(getattr(one, "need_val_args", False) for one in self.schedulers):
            return None
        loaded = []
        for i, (state, mine) in enumerate(zip(states, own, strict=True)):
            where = f"param_schedulers[{i}]"
            keys = [key for key in mine if key in state and (self.unchanged or key in _COUNTED)]
            loaded.append({key: self.parts.like(f"{where}.{key}", state[key], mine[key]) for key in keys})
        return loaded

    # Optimisers

    def _optimizer_state(self, saved: Mapping) -> dict:
        parts, own = self.parts, self.own
        kind = type(self.wrapper.optimizer).__name__
        if self.before is not None and self.before.get("type") != kind:
            parts.fail(f"its optimizer is {ascii(self.before.get('type'))[:40]}, and the config's is {kind}", _ANEW)
        self.saved_groups = groups = parts.sequence(
            f"{self.name}.param_groups", saved.get("param_groups"), parts.mapping
        )
        for i, group in enumerate(groups):
            parts.sequence(f"{self.name}.param_groups[{i}].params", group.get("params"), parts.count)
        sizes, own_sizes = ([len(group["params"]) for group in each] for each in (groups, own["param_groups"]))
        if sizes != own_sizes:
            parts.fail(f"its optimizer has {_counted(sizes)}, and the config's has {_counted(own_sizes)}", _ANEW)
        merged = [
            self._merged(f"{self.name}.param_groups[{i}]", *pair, i)
            for i, pair in enumerate(zip(groups, own["param_groups"], strict=True))
        ]
        result = dict(own, param_groups=merged, state=self._state(saved.get("state"), groups))
        if own.get("base_param_settings") is not None and "base_param_settings" in saved:
            name = f"{self.name}.base_param_settings"
            base = parts.mapping(name, saved["base_param_settings"])
            mine = own["base_param_settings"]
            result["base_param_settings"] = self._merged(name, base, mine, len(groups)) | {"params": mine["params"]}
        if own.get("loss_scaler") and "loss_scaler" in saved:
            name = f"{self.name}.loss_scaler"
            scaler = parts.mapping(name, saved["loss_scaler"], parts.number)
            result["loss_scaler"] = {
                k: parts.like(f"{name}.{k}", scaler.get(k), v) for k, v in own["loss_scaler"].items()
            }
        return result

    def _merged(self, name: str, saved: Mapping, own: Mapping, number: int) -> dict:
        """The options of one group."""
        before = None
        if self.before is not None:
            listed = self.before.get("groups")
            before = listed[number] if isinstance(listed, (list, tuple)) and number < len(listed) else None
            self.parts.mapping("setting.groups", before)
        else:
            known = {*own, *("momentum" for _ in own.keys() & {"betas"})}
            foreign = [key for key in saved if key not in known and not key.startswith("initial_")]
            if foreign:
                kind = type(self.wrapper.optimizer).__name__
                self.parts.fail(f"its optimizer has the options {', '.join(foreign)}, which {kind} has not", _ANEW)
        merged = dict(own, params=list(saved.get("params", ())))
        for key, value in own.items():
            if key == "params" or key not in saved or value is None or isinstance(value, bool):
                continue  # how to compute is for the config to say
            told = self._like(f"{name}.{key}", saved[key], value)
            if key in self.scheduled:
                merged[key] = value if self.replay else self._continued(key, told, saved, own)
            elif before is not None and key in before:
                merged[key] = told if before[key] == value else value
            elif key not in self.wrapper.defaults:
                merged[key] = told
        return merged

    def _like(self, name: str, saved, own):
        if isinstance(own, (int, float)) and not isinstance(own, bool):
            told = self.parts.number(name, saved)  # of rates, decays and the like none is negative
            self.parts.expect(told >= 0 or own < 0, name, told, "a number from 0")
            return told
        return self.parts.like(name, saved, own)

    def _continued(self, key: str, told, saved: Mapping, own: Mapping):
        """The file's value of a scheduled option; where the config has another start, in proportion to it."""
        if key.startswith("initial_"):
            return own[key]
        start = f"initial_{key}"
        if self.unchanged or start not in saved or not saved[start] or own.get(start) == saved[start]:
            return told
        return told * own[start] / self.parts.number(start, saved[start])

    def _state(self, state, groups: Sequence[Mapping]) -> dict:
        parts, name = self.parts, f"{self.name}.state"
        parts.expect(isinstance(state, Mapping), name, state, "a mapping")
        numbers = [number for group in groups for number in group["params"]]
        known_numbers = set(numbers)
        parts.expect(len(known_numbers) == len(numbers), f"{self.name}.param_groups", groups, "each parameter once")
        for key in state:
            good = isinstance(key, int) and key in known_numbers
            parts.expect(good, f"{name}: a key", key, "the number of a parameter")
        optimizer, number = self.wrapper.optimizer, iter(numbers)
        known: dict = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                key = next(number)
                if not (entry := parts.mapping(f"{name}[{key}]", state.get(key, {}))):
                    continue
                shape = (parameter.shape, parameter.dtype, id(group))
                if shape not in known:
                    known[shape] = _first_state(optimizer, parameter, group)
                self._check_entry(f"{name}[{key}]", entry, parameter, known[shape])
        return {key: dict(value) for key, value in state.items() if value}

    def _check_entry(self, name: str, entry: Mapping, parameter: Tensor, expected: Mapping | None) -> None:
        parts = self.parts
        if missing := [key for key in expected or () if key not in entry]:
            parts.fail(f"its `{name}` holds no {', '.join(missing)}", _ANEW)
        for key, value in entry.items():
            where, own = f"{name}.{key}", (expected or {}).get(key)
            if isinstance(own, Tensor) and own.ndim:
                fits = isinstance(value, Tensor) and value.shape == own.shape
                fits = fits and value.is_floating_point() == own.is_floating_point()
                parts.expect(fits, where, value, f"a tensor {tuple(own.shape)} of {own.dtype}")
            elif own is not None:  # a count of steps, which was a number once
                scalar = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
                parts.expect(parts.number(where, scalar) >= 0, where, scalar, "a number from 0")
            else:
                good = value is None or isinstance(value, (bool, int, float, Tensor, list))
                parts.expect(good, where, value, "a tensor or a number")

    def apply(self, steps: int, epochs: int, rest: int) -> None:
        """Load the states; the run is at `rest` steps after `steps` in `epochs` that are over."""
        if self.optimizer_state is not None:
            self.wrapper.load_state_dict(dict(self.optimizer_state))
        if self.replay:
            advance(self.schedulers, steps, epochs, rest)
        else:
            for one, state in zip(self.schedulers, self.states, strict=True):
                one.load_state_dict(state)


def _counted(sizes: Sequence[int]) -> str:
    total = sum(sizes)
    return f"{total} parameters in {len(sizes)} group{'s'[: len(sizes) != 1]}"


def _first_state(optimizer: Optimizer, parameter: Tensor, group: Mapping) -> Mapping | None:
    """What an optimiser keeps for a parameter, found by one step without memory; None where it cannot take one."""
    trial = torch.nn.Parameter(torch.empty_like(parameter, device="meta"))
    trial.grad = torch.empty_like(trial)
    options = {key: value for key, value in group.items() if key != "params"}
    try:
        one = type(optimizer)([dict(options, params=[trial])])
        one.step()
    except Exception:
        return None
    return one.state[trial]
