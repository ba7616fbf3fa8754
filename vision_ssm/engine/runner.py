"""MMEngine's runner with safe checkpoints and exact resume; any MMEngine config runs on it unchanged."""

import functools
from collections.abc import Callable
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
from mmengine.registry import OPTIMIZERS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner import Runner as _Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ..checkpoints import CheckpointError, check_state_dict, converting, read, unwrap
from ..files import write_atomically, written_over
from .checkpoint_hook import CheckpointHook
from .classes_hook import ClassesHook
from .data_check import DataCheckHook, check_samples, naming_annotations
from .loader import built, ordered_loader
from .loops import EpochLoop, IterLoop
from .order import Order, Seeded, preserved, random_state, restore
from .outputs import check_outputs
from .plain import plain, revived

__all__ = ["Runner"]

_LOOPS = {
    "IterBasedTrainLoop": IterLoop,
    "EpochBasedTrainLoop": EpochLoop,
    IterBasedTrainLoop: IterLoop,
    EpochBasedTrainLoop: EpochLoop,
}
_CHECKPOINT_HOOKS = ("CheckpointHook", StockCheckpointHook)


@RUNNERS.register_module(name="VisionSSMRunner")
class Runner(_Runner):
    """MMEngine's `Runner` with these differences.

    - Checkpoints hold tensors and plain values only, load weights-only, and are replaced in one step. MMEngine's own
      are read too, without running code from them.
    - A resumed run continues as an unbroken one would, on CPUs to the bit: checkpoints hold the random-number state and
      the accumulated gradients of every process, and the order and augmentation of the data follow from the seed and
      the step (`order.py`). A validation that a kill cut off is repeated.
    - Weights load strictly; a checkpoint that does not fit is an error that names the keys.
    - A sample that cannot be read is an error that names its file.
    """

    validation_missed = False  # the run was resumed where the validation of that step had not ended
    _to_restore: dict | None = None
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
            if kind is None:
                kind = "EpochBasedTrainLoop" if loop.pop("by_epoch") else "IterBasedTrainLoop"
            loop["type"] = _LOOPS.get(kind, kind)
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

    def register_hook(self, hook, priority=None) -> None:
        """As MMEngine's, with the stock checkpoint hook replaced."""
        if isinstance(hook, dict) and hook.get("type") in _CHECKPOINT_HOOKS:
            hook = dict(hook, type=CheckpointHook)
        super().register_hook(hook, priority)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """As MMEngine's, with a look at the classes and, before training, at the data."""
        hooks = dict(classes=dict(type=ClassesHook), data_check=dict(type=DataCheckHook)) | (hooks or {})
        if hooks["data_check"] is None:
            del hooks["data_check"]
        super().register_default_hooks(hooks)

    # Running

    def train(self) -> nn.Module:
        """As MMEngine's."""
        try:
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

    # Saving

    def _process_state(self) -> dict:
        """What differs between processes, and gradients: an optimiser that accumulates has some between its steps."""
        model = self._bare_model()
        parameters = dict(model.named_parameters())
        gradients = {name: p.grad.cpu() for name, p in parameters.items() if p.grad is not None}
        buffers = {name: value.cpu() for name, value in model.state_dict().items() if name not in parameters}
        if is_main_process():
            buffers = {}  # the checkpoint's; statistics of BatchNorm are each process's own
        return dict(random=self._before_validation or random_state(), gradients=gradients, buffers=buffers)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """As MMEngine's, of plain values and in one step. Every process must call it."""
        self._extra = {}
        if kwargs.get("save_optimizer", True):  # otherwise it is not there to be resumed from
            states = self._process_state()
            self._extra["process_states"] = all_gather_object(states) if get_world_size() > 1 else [states]
            self._extra["validated"] = self._before_validation is not None
            self._extra["epoch_progress"] = self._epoch_progress(kwargs.get("meta") or {})
        if not is_main_process():
            return
        write = super().save_checkpoint
        if "://" in str(out_dir):  # a remote store replaces objects whole
            write(out_dir, filename, *args, **kwargs)
        else:
            write_atomically(Path(out_dir) / filename, lambda path: write(str(path.parent), path.name, *args, **kwargs))

    def _epoch_progress(self, meta: dict) -> dict | None:
        """How far a checkpoint is in its epoch, in steps, and how many the epoch has."""
        if not isinstance(self.train_loop, EpochLoop):
            return None
        within = meta.get("epoch") == self.train_loop.epoch
        return dict(
            done=meta["iter"] - self.train_loop.epoch_start if within else 0, steps=len(self.train_loop.dataloader)
        )

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """As MMEngine's; after the hooks have added to a checkpoint, it is made plain."""
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":
            checkpoint = kwargs["checkpoint"]
            checkpoint.update(self._extra)
            for key in checkpoint:
                if key != "state_dict":
                    checkpoint[key] = plain(checkpoint[key], key)

    # Loading

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = True,
        revise_keys: list | None = None,
    ) -> dict:
        """Load weights strictly, in this package's names or, for its models, in the published ones.

        Only `filename` counts: tensors are read on the CPU, always strictly, and names need no revision.

        Raises:
            CheckpointError: keys are missing, unexpected or of another shape; they are named.
            FileNotFoundError, ValueError: no file, or none that can be read.
        """
        checkpoint = revived(read(filename))
        model = self._bare_model()
        state_dict = unwrap(checkpoint)
        with converting(filename, model):
            if convert := getattr(model, "convert_state_dict", None):
                state_dict = convert(state_dict)
            elif convert := getattr(getattr(model, "backbone", None), "convert_state_dict", None):
                state_dict = convert(state_dict, "backbone.")
        checkpoint["state_dict"] = state_dict
        own = model.state_dict()
        try:
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        except RuntimeError:  # a hook's copy of the model does not fit either, and says less about it
            check_state_dict(state_dict, own, model, filename)
            raise
        state_dict = checkpoint["state_dict"]
        check_state_dict(state_dict, own, model, filename)
        model.load_state_dict(state_dict)
        self._has_loaded = True
        self.logger.info(f"loaded {filename}")
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: the file does not fit, or holds weights only.
        """
        content = read(filename)
        if missing := [key for key in ("meta", "message_hub", "optimizer") if key not in content]:
            raise CheckpointError(
                f"{filename} cannot be resumed from: it holds no {', '.join(missing)}; "
                "to start from its weights give it as `load_from`"
            )
        self._resume = True  # hooks ask for it
        super().resume(filename, *args, **kwargs)
        order = getattr(self.train_dataloader, "batch_sampler", None)
        if isinstance(order, Order):
            order.seed = self._common_seed()
        self.validation_missed = not content.get("validated", True)
        if isinstance(self.train_loop, EpochLoop):
            self._resume_within_epoch(content.get("epoch_progress"))
        states = content.get("process_states", ())
        if len(states) == get_world_size():
            self._to_restore = states[get_rank()]
        else:
            found = f"the states of {len(states)} processes" if states else "no state of a process"
            self.logger.warning(
                f"{filename} holds {found}, this run has {get_world_size()}: "
                "it continues, but not with the bits of an unbroken one"
            )

    def _resume_within_epoch(self, progress: dict | None) -> None:
        loop, done = self.train_loop, progress["done"] if progress else 0
        steps = len(loop.dataloader)
        if done and done == progress["steps"]:
            done = steps  # the epoch is over, however long it would be now
        elif done and progress["steps"] != steps:
            self.logger.warning(
                f"an epoch had {progress['steps']} steps and now has {steps}: "
                f"the one that was cut off after {done} starts again"
            )
            done = 0
        loop.epoch_start = loop.iter - done
        loop._max_iters = loop.epoch_start + (loop.max_epochs - loop.epoch) * steps

    def restore_process_state(self) -> None:
        """Put generators, gradients and buffers where the checkpoint was saved; nothing if the run was not resumed."""
        if self._to_restore is None:
            return
        model = self._bare_model()
        model.load_state_dict(self._to_restore["buffers"], strict=False)
        for name, parameter in model.named_parameters():
            gradient = self._to_restore["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        restore(self._to_restore["random"])
        self._to_restore = None

    @functools.cached_property
    def _resume_from(self) -> str | None:
        """The checkpoint to resume from: the one that is named, or the latest one that the first process sees."""
        if not self._resume:
            return None
        if self._resume != "auto" and self._load_from is not None:
            return str(self._load_from)
        found = [latest_checkpoint(self.work_dir) if is_main_process() else None]
        broadcast_object_list(found)
        return None if found[0] is None else str(found[0])

    def load_or_resume(self) -> None:
        """As MMEngine's; all processes resume from what the first one sees.

        With `resume="auto"` a run without checkpoints starts from `load_from`.
        """
        if self._has_loaded:
            return
        if self._resume_from is not None:
            self.resume(self._resume_from)
        elif self._load_from is not None:
            self.load_checkpoint(self._load_from)
        elif self._resume:
            self.logger.info(f"no checkpoint in {self.work_dir} to resume from: starting anew")
        self._has_loaded = True

    def _init_model_weights(self) -> None:
        if self._load_from is None and self._resume_from is None:  # otherwise every weight is about to be loaded
            super()._init_model_weights()


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint that a run saved last, in its folder or where its checkpoint hook was told to save.

    MMEngine's note `last_checkpoint` names it; a kill may leave the note empty, or one checkpoint behind. Times of
    files alone do not tell, since a copied folder has others.
    """
    folder = Path(folder)
    number = {
        path: int(path.stem.rpartition("_")[2])
        for pattern in ("iter_*.pth", "epoch_*.pth")
        for path in folder.glob(pattern)
        if path.stem.rpartition("_")[2].isdigit()
    }
    note = folder / "last_checkpoint"
    named = Path(note.read_text().strip()) if note.is_file() else Path()
    if not number:
        return named if named.is_file() else None
    newest = max(number, key=lambda path: (path.stat().st_mtime, number[path]))
    noted = folder / named.name
    if noted in number and number[newest] <= number[noted]:
        return noted
    return newest
