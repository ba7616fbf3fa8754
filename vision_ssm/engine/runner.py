"""MMEngine's runner with safe checkpoints and exact resume; any MMEngine config runs on it unchanged."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_distributed,
    is_main_process,
)
from mmengine.hooks import CheckpointHook as StockCheckpointHook
from mmengine.logging import MessageHub
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, LOOPS, OPTIMIZERS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner import Runner as _Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ..checkpoints import CheckpointError, read
from ..files import write_atomically, written_over
from .checkpoint_hook import CheckpointHook
from .classes_hook import ClassesHook
from .config import ConfigError
from .data_check import DataCheckHook, check_samples, naming_annotations
from .finite import FiniteHook, NonFiniteError, non_finite, refuse_non_finite
from .loader import built, ordered_loader
from .loops import EpochLoop, IterLoop
from .order import Seeded, preserved
from .outputs import check_outputs
from .parts import check_content, latest_whole
from .plain import plain, revived
from .resume import Resumption, process_state
from .saved import folders_held
from .schedule import warn_of_schedules
from .setting import setting
from .types import named_by
from .weights import check_fits, converted, keeping_heads

__all__ = ["Runner"]

_LOOPS = {IterBasedTrainLoop: IterLoop, EpochBasedTrainLoop: EpochLoop}
# MMEngine takes None for these alone.
_STOCK_HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")


@RUNNERS.register_module(name="VisionSSMRunner")
class Runner(_Runner):
    """MMEngine's `Runner` with these differences.

    - Checkpoints hold tensors and plain values only, load weights-only, and are replaced in one step. MMEngine's own
      are read too, without running code from them.
    - A resumed run continues as an unbroken one would, on CPUs to the bit: checkpoints hold the random-number state and
      the accumulated gradients of every process, and the order and augmentation of the data follow from the seed and
      the step (`order.py`). A validation that a kill cut off is repeated. A changed config holds from there on.
    - A training whose losses are not finite ends, and no checkpoint of such weights is written.
    - Weights load strictly; a checkpoint that does not fit is an error that names the keys.
    - A sample that cannot be read is an error that names its file.
    """

    is_built = False  # loops, optimisers and schedules
    validation_missed = False  # the run was resumed where the validation of that step had not ended
    resumed_from: str | None = None
    setting: dict | None = None  # of the training, before its first step
    infinite: frozenset[str] = frozenset()  # weights that are so from the start, as masks are
    _resumption: Resumption | None = None
    _schedules: dict | Sequence | None = None  # configs of the schedulers
    _before_validation: dict | None = None  # random-number state, during a validation

    def setup_env(self, env_cfg: dict) -> None:
        """As MMEngine's, which asks for a GPU wherever several processes start.

        Raises:
            ValueError: Slurm's launcher, without GPUs.
        """
        if self._launcher == "slurm" and not torch.cuda.is_available():
            raise ValueError("launcher='slurm' needs GPUs; without them start torchrun in the job, launcher='pytorch'")
        if self._launcher == "pytorch" and not is_distributed() and not torch.cuda.is_available():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As MMEngine's, which names a GPU for every process."""
        if self.distributed and not torch.cuda.is_available():
            unused = self.cfg.get("find_unused_parameters", False)
            model_wrapper_cfg = model_wrapper_cfg or dict(broadcast_buffers=False, find_unused_parameters=unused)
            if model_wrapper_cfg.get("type", "MMDistributedDataParallel") == "MMDistributedDataParallel":
                model_wrapper_cfg = {**model_wrapper_cfg, "device_ids": None}
        return super().wrap_model(model_wrapper_cfg, model)

    def build_message_hub(self, message_hub: dict | None = None) -> MessageHub:
        """As MMEngine's, but empty: an earlier run of this process may have had the same name."""
        hub = super().build_message_hub(message_hub)
        hub.log_scalars.clear()
        hub.runtime_info.clear()
        return hub

    def dump_config(self) -> None:
        """As MMEngine's, but not over the config that the run was started by."""
        target = Path(self.work_dir) / Path(self.cfg.filename or "").name
        if self.cfg.filename is None or written_over([target], [self.cfg.filename]) is None:
            super().dump_config()

    def _bare_model(self) -> nn.Module:
        """The model that checkpoints are of, without what is around it."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return model.module if isinstance(model, BaseTTAModel) else model

    # Data

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """As MMEngine's; errors of samples name their files."""
        if isinstance(dataloader, dict):
            dataset = built(dataloader["dataset"])
            named = dataset if isinstance(dataset, IterableDataset) else Seeded(dataset)
            dataloader = {**dataloader, "dataset": named}
        return _Runner.build_dataloader(dataloader, *args, **kwargs)

    def _common_seed(self) -> int:
        """The seed that all processes share: each one's own has its rank added where the config asks for that."""
        return self.seed - get_rank() * bool(self._randomness_cfg.get("diff_rank_seed"))

    def _train_loader(self) -> DataLoader:
        cfg = self._train_dataloader
        if not isinstance(cfg, dict):
            return cfg
        dataset = built(cfg["dataset"])
        if isinstance(dataset, IterableDataset) or "num_batch_per_epoch" in cfg:
            return self.build_dataloader({**cfg, "dataset": dataset}, seed=self._common_seed())
        return ordered_loader(
            {k: v for k, v in cfg.items() if k != "dataset"}, dataset, self._common_seed(), get_rank()
        )

    def build_train_loop(self, loop):
        """As MMEngine's, with the stock loops replaced by resumable ones."""
        if isinstance(loop, dict):
            loop = dict(loop)
            kind = loop.pop("type", None)
            if kind is None and "by_epoch" not in loop:
                raise ConfigError("`train_cfg` has no `type`: expected IterBasedTrainLoop or EpochBasedTrainLoop")
            if kind is None:
                kind = EpochBasedTrainLoop if loop.pop("by_epoch") else IterBasedTrainLoop
            loop["type"] = _LOOPS.get(named_by(LOOPS, kind), kind)
        cfg = self._train_dataloader  # stays a config: the scaling of learning rates reads the batch size from it
        self._train_dataloader = self._train_loader()
        try:
            return super().build_train_loop(loop)
        finally:
            self._train_dataloader = cfg

    def build_val_loop(self, loop):
        """As MMEngine's; metrics see what they are about to measure, and write over nothing that is read."""
        loop = super().build_val_loop(loop)
        check_samples(loop)
        check_outputs(self.cfg, loop)
        return loop

    def build_test_loop(self, loop):
        """As MMEngine's; metrics see what they are about to measure, and write over nothing that is read."""
        loop = super().build_test_loop(loop)
        check_samples(loop)
        check_outputs(self.cfg, loop)
        return loop

    def build_evaluator(self, evaluator):
        """As MMEngine's; a metric's COCO file that cannot be read is named."""
        with naming_annotations(evaluator):
            return super().build_evaluator(evaluator)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """As MMEngine's, which does not name an optimiser that it does not know."""
        if isinstance(optim_wrapper, dict) and isinstance(optim_wrapper.get("optimizer"), dict):
            kind = optim_wrapper["optimizer"].get("type")
            with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                if isinstance(kind, str) and registry.get(kind) is None:
                    raise KeyError(f"{kind} is not in the registry of optimizers")
        return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler):
        """As MMEngine's, which forgets the configs."""
        if self._schedules is None:
            self._schedules = scheduler
        return super().build_param_scheduler(scheduler)

    def register_hook(self, hook, priority=None) -> None:
        """As MMEngine's, with the stock checkpoint hook replaced."""
        if isinstance(hook, dict) and named_by(HOOKS, hook.get("type")) is StockCheckpointHook:
            hook = dict(hook, type=CheckpointHook)
        super().register_hook(hook, priority)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """As MMEngine's, with a look at the classes, at the data before training, and at the losses; None is off."""
        own = dict(classes=ClassesHook, data_check=DataCheckHook, finite=FiniteHook)
        hooks = {name: dict(type=hook) for name, hook in own.items()} | (hooks or {})
        super().register_default_hooks(
            {name: hook for name, hook in hooks.items() if hook is not None or name in _STOCK_HOOKS}
        )

    # Running

    def train(self) -> nn.Module:
        """As MMEngine's.

        Raises:
            ConfigError: another run is at work in the folder.
            NonFiniteError: the training has left the finite numbers.
        """
        self.infinite = frozenset(non_finite(self._bare_model().state_dict()))
        try:
            with folders_held(self.work_dir, self.checkpoint_hook and self.checkpoint_hook.out_dir):
                return super().train()
        finally:
            self._end_workers()

    def test(self) -> dict:
        """As MMEngine's."""
        try:
            return super().test()
        finally:
            self._end_workers()

    def _end_workers(self) -> None:
        """Let go of processes that load data; left to the garbage collector each takes seconds to end."""
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            if isinstance(loop, BaseLoop):
                loop.dataloader_iterator = loop.dataloader._iterator = None

    def validate(self) -> None:
        """Run the validation. It draws no random number from the training, and checkpoints saved in it know of it."""
        with preserved() as self._before_validation:
            self.val_loop.run()
        self._before_validation = None

    @property
    def checkpoint_hook(self) -> CheckpointHook | None:
        """The hook that saves checkpoints, if there is one."""
        return next((hook for hook in self._hooks if isinstance(hook, CheckpointHook)), None)

    # Saving

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """As MMEngine's, of plain values and in one step. Every process must call it.

        Raises:
            CheckpointError: the file cannot be written; the earlier ones are as they were.
            NonFiniteError: the weights, or another state, are NaN or infinite.
        """
        self._extra = {}
        if kwargs.get("save_optimizer", True):  # otherwise it is not there to be resumed from
            states = process_state(self._bare_model(), self._before_validation)
            self._extra["process_states"] = all_gather_object(states) if get_world_size() > 1 else [states]
            self._extra["validated"] = self._before_validation is not None
            by_epoch = isinstance(self.train_loop, EpochLoop)
            self._extra["epoch_progress"] = self.train_loop.progress(kwargs.get("meta") or {}) if by_epoch else None
            if self.setting is not None:
                self._extra["setting"] = self.setting
        problem = [None]
        if is_main_process():
            write = super().save_checkpoint
            try:
                if "://" in str(out_dir):  # a remote store replaces objects whole
                    write(out_dir, filename, *args, **kwargs)
                else:
                    path = Path(out_dir) / filename
                    write_atomically(path, lambda file: write(str(file.parent), file.name, *args, **kwargs))
            except OSError as error:
                why = error.strerror or error
                problem = [
                    CheckpointError(f"{Path(out_dir) / filename} cannot be written: {why}; earlier ones are whole")
                ]
            except NonFiniteError as error:
                problem = [error]
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise problem[0]

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """As MMEngine's; after the hooks have added to a checkpoint, it is made plain, and must be finite."""
        self.is_built |= fn_name == "before_run"
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":
            checkpoint = kwargs["checkpoint"]
            checkpoint.update(self._extra)
            for key in checkpoint:
                if key != "state_dict":
                    checkpoint[key] = plain(checkpoint[key], key)
            refuse_non_finite(self, checkpoint)

    # Loading

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = True,
        revise_keys: list | None = None,
        keep_head: bool = False,
    ) -> dict:
        """Load weights strictly, in this package's names or, for its models, in the published ones.

        Only `filename` and `keep_head` count: tensors are read on the CPU, always strictly, and names need no revision.

        Args:
            keep_head: leave the heads as they are, for other classes (see `keeping_heads`).

        Raises:
            CheckpointError: keys are missing, unexpected or of another shape; they are named.
            FileNotFoundError, ValueError: no file, or none that can be read.
        """
        return self._load(read(filename), str(filename), keep_head)

    def _load(self, content: Mapping, file: str, keep_head: bool = False) -> dict:
        checkpoint = revived(content)
        model = self._bare_model()
        state_dict = converted(checkpoint, model, file)
        if keep_head:
            state_dict, layers = keeping_heads(state_dict, model)
            kept = f"these start anew: {', '.join(layers)}" if layers else "everything fits, and nothing starts anew"
            self.logger.warning(f"keep_head: {kept}")
        checkpoint["state_dict"] = state_dict
        try:
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        except RuntimeError:  # a hook's copy of the model does not fit either, and says less about it
            check_fits(state_dict, model, file)
            raise
        state_dict = checkpoint["state_dict"]
        check_fits(state_dict, model, file)
        model.load_state_dict(state_dict)
        self._has_loaded = True
        self.logger.info(f"loaded {file}")
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continue from a checkpoint. Nothing of it is used before all of it is checked.

        Raises:
            CheckpointError: the file does not fit, has parts of another kind, or holds weights only.
        """
        filename = str(filename)
        content = read(filename)
        check_content(content, filename, self.infinite)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        self.setting = self.setting or setting(self)
        check_fits(converted(content, self._bare_model(), filename), self._bare_model(), filename)
        content = revived(content)
        resumption = Resumption(self, content, filename)
        self._resume = True  # hooks ask for it
        self._load(content, filename)
        resumption.apply()
        self._resumption, self.resumed_from = resumption, filename

    def restore_process_state(self) -> None:
        """Put generators, gradients and buffers where the checkpoint was saved; nothing if the run was not resumed."""
        if self._resumption is not None:
            self._resumption.restore_process_state()

    @functools.cached_property
    def _resume_from(self) -> str | None:
        """The checkpoint to resume from: the one that is named, or the latest whole one that the first process sees."""
        if not self._resume:
            return None
        if self._resume != "auto" and self._load_from is not None:
            return str(self._load_from)
        return latest_whole(self)

    def load_or_resume(self) -> None:
        """As MMEngine's; all processes resume from what the first one sees.

        With `resume="auto"` a run without checkpoints starts from `load_from`.
        """
        if self._has_loaded:
            return
        training = isinstance(self._train_loop, BaseLoop) and isinstance(self.optim_wrapper, OptimWrapper)
        if training:
            self.setting = setting(self)
        if self._resume_from is not None:
            self.resume(self._resume_from)
        elif self._load_from is not None:
            if training and self.checkpoint_hook is not None:
                self.checkpoint_hook.check_start(str(self._load_from), self.work_dir)
            self.load_checkpoint(self._load_from, keep_head=bool(self.cfg.get("keep_head", False)))
        elif self._resume:
            self.logger.info(f"no checkpoint in {self.work_dir} to resume from: starting anew")
        self._has_loaded = True
        if training and is_main_process():
            warn_of_schedules(self, self._schedules)

    def _init_model_weights(self) -> None:
        if self._load_from is None and self._resume_from is None:  # otherwise every weight is about to be loaded
            super()._init_model_weights()
