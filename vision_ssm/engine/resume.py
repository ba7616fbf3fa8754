"""Going on from a checkpoint: everything is checked against the run before any of it is applied."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from mmengine.dist import get_rank, get_world_size, is_main_process
from torch import nn

from ..checkpoints import check_state_dict
from .loops import EpochLoop
from .order import Order, random_state, restore
from .parts import Parts, check_process
from .schedule import by_optimizer, wrappers
from .setting import differences
from .training_state import OptimizerPlan

__all__ = ["Resumption", "process_state"]


def process_state(model: nn.Module, random: Mapping | None = None) -> dict:
    """What differs between processes, and gradients: an optimiser that accumulates has some between its steps.

    Args:
        model: whose gradients and buffers these are.
        random: state of the generators, if it is not the present one.
    """
    parameters = dict(model.named_parameters())
    gradients = {name: p.grad.cpu() for name, p in parameters.items() if p.grad is not None}
    buffers = {name: value.cpu() for name, value in model.state_dict().items() if name not in parameters}
    if is_main_process():
        buffers = {}  # the checkpoint's; statistics of BatchNorm are each process's own
    return dict(random=random or random_state(), gradients=gradients, buffers=buffers)


class Resumption:
    """What a run takes over from a checkpoint besides the weights.

    Args:
        runner: with loop, optimisers and schedules built, before its first step.
        content: of the checkpoint, whose parts are of the right kinds (`check_content`).
        file: its name.

    Raises:
        CheckpointError: the checkpoint is of another training; the message has the part.
    """

    def __init__(self, runner, content: Mapping, file: str | Path):
        self.runner, self.content, self.file = runner, content, file
        self.parts = Parts(file)
        self.before: Mapping | None = content.get("setting")
        self._check_loop()
        self._check_average()
        self.plans = self._plans()
        self.state = self._process_state()

    # Checks

    def _check_loop(self) -> None:
        loop, meta = self.runner.train_loop, self.content["meta"]
        by_epoch = isinstance(loop, EpochLoop)
        kind = (self.before or {}).get("loop")
        if kind is not None and kind != type(loop).__name__:
            self.parts.fail(
                f"it was trained by {ascii(kind)[:40]}, and the config's `train_cfg` is a {type(loop).__name__}"
            )
        at, last = (meta["epoch"], loop.max_epochs) if by_epoch else (meta["iter"], loop.max_iters)
        unit, key = ("epoch", "max_epochs") if by_epoch else ("step", "max_iters")
        if at > last:
            self.parts.fail(
                f"it is at {unit} {at}, and `train_cfg.{key}` is {last}", f"with a larger `{key}` it goes on"
            )
        if at == last:
            self.runner.logger.warning(f"{self.file} is at {unit} {at} of {last}: nothing is left to train")

    def _check_average(self) -> None:
        average = self.content.get("ema_state_dict")
        models = [hook.ema_model for hook in self.runner._hooks if hasattr(hook, "ema_model")]
        for model in models if average is not None else ():
            check_state_dict(average, model.state_dict(), model, f"`ema_state_dict` of {self.file}")
        if average is not None and not models:
            self.runner.logger.warning(
                f"{self.file} holds a moving average and the config has no EMAHook: it goes on from the average"
            )

    def _plans(self) -> list[OptimizerPlan]:
        runner, content, parts = self.runner, self.content, self.parts
        own, schedulers = wrappers(runner.optim_wrapper), by_optimizer(runner.param_schedulers)
        states = by_optimizer(content.get("param_schedulers"))
        anew = not runner.cfg.get("resume_optimizer", True)
        plans = []
        for name, wrapper in own.items():
            where = f"optimizer.{name}" if name else "optimizer"
            saved = content["optimizer"].get(name) if name else content["optimizer"]
            before = None if self.before is None else self.before["optimizers"].get(name)
            plans.append(
                OptimizerPlan(
                    parts,
                    where,
                    None if anew else parts.mapping(where, saved),
                    wrapper,
                    schedulers.get(name) or [],
                    states.get(name),
                    before,
                    runner.setting["optimizers"][name],
                )
            )
        if anew:
            runner.logger.warning("`resume_optimizer=False`: the optimizer starts anew")
        return plans

    def _process_state(self) -> dict | None:
        states = self.content.get("process_states", ())
        if len(states) == get_world_size():
            model = self.runner._bare_model()
            for i, state in enumerate(states):
                check_process(self.parts, f"process_states[{i}]", state, model)
            return states[get_rank()]
        found = f"the states of {len(states)} processes" if states else "no state of a process"
        self.runner.logger.warning(
            f"{self.file} holds {found}, this run has {get_world_size()}: "
            "it continues, but not with the bits of an unbroken one"
        )
        return None

    # Going on

    def apply(self) -> None:
        """Bring loop, seed, data, messages, optimisers and schedules to where the checkpoint is."""
        runner, content, meta = self.runner, self.content, self.content["meta"]
        loop = runner.train_loop
        loop._epoch, loop._iter = meta["epoch"], meta["iter"]
        self._seed(meta.get("seed"))
        self._compare_classes(meta.get("dataset_meta"))
        self._messages(content["message_hub"])
        runner.validation_missed = not content.get("validated", True)
        rest = 0
        if isinstance(loop, EpochLoop):
            self._within_epoch(loop, content.get("epoch_progress"))
            rest = loop.iter - loop.epoch_start
        for plan in self.plans:
            plan.apply(meta["iter"] - rest, loop.epoch if isinstance(loop, EpochLoop) else 0, rest)
        self._tell_differences()

    def _seed(self, seed: int | None) -> None:
        runner = self.runner
        current = runner._randomness_cfg.get("seed")
        if seed is not None and seed != current:
            if current is not None:
                runner.logger.warning(f"the config's seed is {current}: the run goes on with the file's, {seed}")
            runner._randomness_cfg.update(seed=seed)
            runner.set_randomness(**runner._randomness_cfg)
        order = getattr(runner.train_dataloader, "batch_sampler", None)
        if isinstance(order, Order):
            order.seed = runner._common_seed()

    def _compare_classes(self, saved) -> None:
        own = getattr(self.runner.train_dataloader.dataset, "metainfo", None) or {}
        classes = [one.get("classes") if isinstance(one, Mapping) else None for one in (saved, own)]
        if all(isinstance(each, (list, tuple)) for each in classes) and list(classes[0]) != list(classes[1]):
            self.runner.logger.warning(f"{self.file} was trained on other classes than the data has: it goes on")

    def _messages(self, saved: Mapping) -> None:
        """What was logged, and what hooks keep. What a run says of itself stays: its config, seed and name."""
        hub = self.runner.message_hub
        keep = {key for key, kept in saved["resumed_keys"].items() if kept and key not in hub.runtime_info}
        info = {key: value for key, value in saved["runtime_info"].items() if key in keep}
        for key in [key for key in info if key.startswith("best_score") and not isfinite(info[key])]:
            del info[key]  # no score would ever be better
        scalars = {key: value for key, value in saved["log_scalars"].items() if key in keep}
        hub.load_state_dict(
            dict(log_scalars=scalars, runtime_info=info, resumed_keys=dict.fromkeys((*scalars, *info), True))
        )

    def _within_epoch(self, loop: EpochLoop, progress: Mapping | None) -> None:
        done = progress["done"] if progress else 0
        steps = len(loop.dataloader)
        if done and done == progress["steps"]:
            done = steps  # the epoch is over, however long it would be now
        elif done and progress["steps"] != steps:
            self.runner.logger.warning(
                f"an epoch had {progress['steps']} steps and now has {steps}: "
                f"the one that was cut off after {done} starts again"
            )
            done = 0
        loop.epoch_start = loop.iter - done
        loop._max_iters = loop.epoch_start + (loop.max_epochs - loop.epoch) * steps

    def _tell_differences(self) -> None:
        runner = self.runner
        for plan in self.plans:
            groups = plan.saved_groups or [{}]
            old, new = groups[0].get("lr"), plan.wrapper.param_groups[0].get("lr")
            if old is not None and old != new:
                runner.logger.warning(
                    f"the learning rate of {self.file} is {old:.4g}: by the config it is {new:.4g} here"
                )
        if self.before is not None and (changes := differences(self.before, runner.setting)):
            runner.logger.warning(f"the config is not the one of {self.file}, and holds from here on: {changes}")
        runner.logger.info(f"resumed {self.file}: epoch {runner.epoch}, step {runner.iter}")

    def restore_process_state(self) -> None:
        """Put generators, gradients and buffers where the checkpoint was saved."""
        state, self.state = self.state, None
        if state is None:
            return
        model = self.runner._bare_model()
        model.load_state_dict(state["buffers"], strict=False)
        for name, parameter in model.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        restore(state["random"])
