"""What a config says of a training, kept in its checkpoints and compared when they are resumed from."""

from collections.abc import Iterator, Mapping

from .loops import EpochLoop
from .schedule import by_optimizer, wrappers

__all__ = ["differences", "plain_values", "setting"]

_MANY = 8  # differences that are told one by one
_FOLLOWS = ("base_values", "_last_value", "initial_lr", "initial_momentum")  # from other entries
_PLAIN = (bool, int, float, str, type(None))


def plain_values(state: Mapping) -> dict:
    """The entries that are numbers, text, or lists of such."""

    def is_plain(value) -> bool:
        return isinstance(value, _PLAIN) or (isinstance(value, (list, tuple)) and all(map(is_plain, value)))

    return {key: value for key, value in state.items() if key != "params" and is_plain(value)}


def setting(runner) -> dict:
    """The setting of a run that has not taken a step: loop, batches, optimisers with their options, schedules."""
    loop, loader = runner.train_loop, runner._train_dataloader
    batch = loader.get("batch_size", 1) if isinstance(loader, Mapping) else loader.batch_size
    schedulers = by_optimizer(runner.param_schedulers)
    optimizers = {}
    for name, wrapper in wrappers(runner.optim_wrapper).items():
        optimizers[name] = dict(
            type=type(wrapper.optimizer).__name__,
            precision=type(wrapper).__name__,
            accumulative_counts=wrapper._accumulative_counts,
            groups=[plain_values(group) for group in wrapper.param_groups],
            schedulers=[
                dict(plain_values(one.state_dict()), type=type(one).__name__) for one in schedulers.get(name) or ()
            ],
        )
    length = "max_epochs" if isinstance(loop, EpochLoop) else "max_iters"
    own = {"loop": type(loop).__name__, length: getattr(loop, length)}
    return own | dict(batch_size=batch, processes=runner.world_size, optimizers=optimizers)


def _flat(value, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        items = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        items = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        yield name.replace("optimizers..", ""), value
        return
    for key, item in items:
        yield from _flat(item, key)


def differences(before: Mapping, now: Mapping) -> str:
    """Where two settings differ, as "lr 0.1 -> 0.2, ...", in one line; nothing where they do not."""
    old, new = dict(_flat(before, "")), dict(_flat(now, ""))
    told = []
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key) and key.rpartition(".")[2] not in _FOLLOWS:
            values = " -> ".join(ascii(one[key])[:40] if key in one else "nothing" for one in (old, new))
            told.append(f"{ascii(key)[1:-1][:60]} {values}")
    return ", ".join(told[:_MANY]) + (f" and {len(told) - _MANY} more" if len(told) > _MANY else "")
