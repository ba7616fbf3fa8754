"""Schedules of learning rates and momenta: brought to a step, and looked at before the first one."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop

from .config import ConfigError

__all__ = ["advance", "by_optimizer", "schedule_problems", "scheduled_options", "wrappers"]

_NOTHING = 1e-10  # of the highest rate: a schedule that ends at 0 need not reach it to the last bit


def wrappers(optim_wrapper: OptimWrapper) -> dict[str, OptimWrapper]:
    """One or several optimisers by name; one alone has none."""
    return dict(optim_wrapper.items()) if isinstance(optim_wrapper, OptimWrapperDict) else {"": optim_wrapper}


def by_optimizer(schedulers) -> dict[str, list]:
    """Lists of schedulers (or of their states) by the name of their optimiser."""
    return dict(schedulers) if isinstance(schedulers, dict) else {"": schedulers or []}


def scheduled_options(schedulers: Sequence[_ParamScheduler]) -> set[str]:
    """Keys of an optimiser's groups that schedulers write."""
    keys = {key for one in schedulers for key in (one.param_name, f"initial_{one.param_name}")}
    return keys | {"betas" for one in schedulers if getattr(one, "use_betas", False)}


def _segments(schedulers: Sequence[_ParamScheduler], steps: int, epochs: int) -> Iterator[int]:
    """Step fresh schedulers as a run does; before each change yields the number of steps that have its values.

    Args:
        schedulers: of a run in epochs of equal length, or in iterations alone (`epochs=0`).
        steps: of the run in all.
        epochs: that these steps are.
    """
    per_step = [one for one in schedulers if not one.by_epoch]
    per_epoch = [one for one in schedulers if one.by_epoch]
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the order of steps of schedulers and optimiser, which has not stepped
        for epoch in range(1, epochs + 2):
            end = steps * epoch // epochs if epoch <= epochs else steps
            if not per_step and end > done:
                yield end - done
            for _ in range(done, end if per_step else done):
                yield 1
                for one in per_step:
                    one.step()
            done = max(done, end)
            for one in per_epoch if epoch <= epochs else ():
                one.step()


def advance(schedulers: Sequence[_ParamScheduler], steps: int, epochs: int, rest: int = 0) -> None:
    """Bring fresh schedulers, and the options that they schedule, to where a run after some steps has them.

    Args:
        schedulers: of one optimiser.
        steps: in the epochs that are over.
        epochs: that are over.
        rest: further steps, in the epoch that is not.
    """
    for _ in _segments(schedulers, steps, epochs):
        pass
    for _ in _segments([one for one in schedulers if not one.by_epoch], rest, 0):
        pass


def schedule_problems(configs: Sequence, build, lr: float, steps: int, epochs: int, first: int = 0) -> list[str]:
    """What a user should know of the schedules of one optimiser before the first step.

    Args:
        configs: of the schedulers.
        build: (configs, optimizer) to schedulers.
        lr: learning rate of the optimiser.
        steps: of the run in all.
        epochs: that these steps are; 0 for a run that counts iterations alone.
        first: step that the run begins or goes on with.

    Returns:
        Sentences.

    Raises:
        ValueError: a scheduler cannot take that many steps.
    """
    if not all(isinstance(one, dict) for one in configs):
        return []
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9)
    try:
        schedulers = build(copy.deepcopy(list(configs)), optimizer)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return []  # of a kind that asks for the groups of the optimiser itself
    problems, acting, names = [], [], []
    for i, one in enumerate(schedulers):
        name = f"`param_scheduler[{i}]` ({type(one).__name__})"
        if getattr(one, "need_val_args", False):
            continue
        if one.by_epoch and not epochs:
            problems.append(
                f"{name} counts epochs, but the training counts iterations: "
                "it never takes a step; set by_epoch=False, and begin and end in iterations"
            )
        elif one.begin >= (last := epochs if one.by_epoch else steps):
            unit = "epoch" if one.by_epoch else "step"
            problems.append(f"{name} begins at {unit} {one.begin}, and the training ends at {last}: it never acts")
        else:
            acting.append(one)
            if one.end < last:
                names.append(f"{name} ends at {'epoch' if one.by_epoch else 'step'} {one.end}")
    rates, group = [], optimizer.param_groups[0]
    for length in _segments(acting, steps, epochs):
        rates.append((length, group["lr"]))
    return problems + _without_rate(rates, steps, first, names)


def _without_rate(rates: list[tuple[int, float]], steps: int, first: int, names: list[str]) -> list[str]:
    """Steps that would be lost: at a learning rate of 0. The last step alone may have it, as schedules end so."""
    nothing = _NOTHING * max((abs(rate) for _, rate in rates), default=0.0)
    lost, start, done = 0, None, 0
    for length, rate in rates:
        done += length
        if abs(rate) <= nothing and done > first:
            lost += min(length, done - first)
            start = max(done - length, first) if start is None else start
    if lost < 2:
        return []
    why = f": {' and '.join(names)}" if names else ""
    return [f"`param_scheduler`: the learning rate is 0 in {lost} of {steps} steps, from step {start + 1} on{why}"]


def warn_of_schedules(runner, configs: Mapping | Sequence | None) -> None:
    """Warn of schedules that would waste steps of a run, before its first one.

    Args:
        runner: with optimisers and loop built, where it begins or goes on.
        configs: its `param_scheduler`.

    Raises:
        ConfigError: a scheduler cannot take as many steps as the run has.
    """
    loop = runner.train_loop
    by_name = configs if isinstance(configs, Mapping) and "type" not in configs else {}
    for name, wrapper in wrappers(runner.optim_wrapper).items():
        found = by_name.get(name, configs) or []
        found = [found] if isinstance(found, Mapping) else found
        lr = max(float(group.get("initial_lr", group.get("lr", 0.0))) for group in wrapper.param_groups)
        epochs = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else 0
        try:
            problems = schedule_problems(found, runner._build_param_scheduler, lr, loop.max_iters, epochs, loop.iter)
        except ValueError as error:
            raise ConfigError(f"`param_scheduler`: {error}") from error
        for problem in problems:
            runner.logger.warning(problem)
