"""MMEngine's runner with safe checkpoints and exact resume; any MMEngine config runs on it unchanged."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_distributed, is_main_process
from mmengine.hooks import CheckpointHook as StockCheckpointHook
from mmengine.logging import MessageHub
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, OPTIMIZERS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner import Runner as _Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from ..checkpoints import CheckpointError, check_state_dict, converting, read, unwrap
from ..files import write_atomically
from .checkpoint_hook import CheckpointHook
from .data_check import DataCheckHook
from .loops import EpochLoop, IterLoop
from .order import DataError, Order, Seeded, preserved, random_state, restore
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
    - A resumed run ends with the bits of an unbroken one (on one machine): checkpoints hold the random-number state and
      the accumulated gradients of every process, and the order and augmentation of the data follow from the seed and
      the step (`order.py`). A validation that a kill cut off is repeated.
    - Weights load strictly; a checkpoint that does not fit is an error that names the keys.
    - A sample that cannot be read is an error that names its file.
    """

    validation_missed = False  # the run was resumed where the validation of that step had not ended
    _to_restore: dict | None = None
    _before_validation: dict | None = None  # random-number state, during a validation

    def setup_env(self, env_cfg: dict) -> None:
        """As MMEngine's, which asks for a GPU wherever several processes start."""
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

    def _bare_model(self) -> nn.Module:
        """The model that checkpoints are of, without what is around it."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return model.module if isinstance(model, BaseTTAModel) else model

    # Data

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """As MMEngine's; errors of samples name their files."""
        if isinstance(dataloader, dict):
            dataset = _built(dataloader["dataset"])
            named = dataset if isinstance(dataset, IterableDataset) else Seeded(dataset)
            dataloader = {**dataloader, "dataset": named}
        return _Runner.build_dataloader(dataloader, *args, **kwargs)

    def _ordered_dataloader(self, cfg: dict) -> DataLoader:
        """A training loader in an order that can be resumed."""
        cfg = copy.deepcopy(cfg)
        dataset = _built(cfg.pop("dataset"))
        if isinstance(dataset, IterableDataset) or "num_batch_per_epoch" in cfg:
            return self.build_dataloader({**cfg, "dataset": dataset}, seed=self.seed)
        sampler, batch_sampler = cfg.pop("sampler"), cfg.pop("batch_sampler", None)
        batch_size, drop_last = cfg.pop("batch_size", 1), cfg.pop("drop_last", False)

        def build(seed: int) -> BatchSampler:
            one = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
            if batch_sampler is None:
                return BatchSampler(one, batch_size, drop_last)
            return DATA_SAMPLERS.build(batch_sampler, default_args=dict(sampler=one, batch_size=batch_size))

        collate = cfg.pop("collate_fn", dict(type="pseudo_collate"))
        if isinstance(collate, dict):
            kind = collate.pop("type")
            collate = partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **collate)
        cfg.pop("worker_init_fn", None)  # each sample is seeded by its position
        order = Order(build, self.seed, get_rank())
        if not len(order):
            raise DataError(f"{len(dataset)} samples to train on do not make one batch of {batch_size}")
        return DataLoader(
            Seeded(dataset),
            batch_sampler=order,
            collate_fn=collate,
            generator=torch.Generator(),  # workers' seeds must not come from the model's random numbers
            **cfg,
        )

    def build_train_loop(self, loop):
        """As MMEngine's, with the stock loops replaced by resumable ones."""
        if isinstance(loop, dict):
            loop = dict(loop)
            kind = loop.pop("type", None)
            if kind is None:
                kind = "EpochBasedTrainLoop" if loop.pop("by_epoch") else "IterBasedTrainLoop"
            loop["type"] = _LOOPS.get(kind, kind)
        if isinstance(self._train_dataloader, dict):
            self._train_dataloader = self._ordered_dataloader(self._train_dataloader)
        return super().build_train_loop(loop)

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
        """As MMEngine's, with a look at the data before training."""
        hooks = dict(data_check=dict(type=DataCheckHook)) | (hooks or {})
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
        if not is_main_process():
            return
        write = super().save_checkpoint
        if "://" in str(out_dir):  # a remote store replaces objects whole
            write(out_dir, filename, *args, **kwargs)
        else:
            write_atomically(Path(out_dir) / filename, lambda path: write(str(path.parent), path.name, *args, **kwargs))

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
        """Load weights strictly, in this package's names or, for its backbones, in the published ones.

        Raises:
            CheckpointError: keys are missing, unexpected or of another shape; they are named.
            FileNotFoundError, ValueError: no file, or none that can be read.
        """
        checkpoint = revived(read(filename))
        model = self._bare_model()
        state_dict = unwrap(checkpoint)
        convert = getattr(getattr(model, "backbone", None), "convert_state_dict", None)
        if convert:
            with converting(filename, model):
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
            order.seed = self.seed
        self.validation_missed = not content.get("validated", True)
        states = content.get("process_states", ())
        if len(states) == get_world_size():
            self._to_restore = states[get_rank()]
        else:
            found = f"the states of {len(states)} processes" if states else "no state of a process"
            self.logger.warning(
                f"{filename} holds {found}, this run has {get_world_size()}: "
                "it continues, but not with the bits of an unbroken one"
            )

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

    def load_or_resume(self) -> None:
        """As MMEngine's; the latest checkpoint is the newest complete file in the work folder."""
        if self._resume and self._load_from is None and not self._has_loaded:
            latest = latest_checkpoint(self.work_dir)
            if latest is None:
                self.logger.info(f"no checkpoint in {self.work_dir} to resume from: starting anew")
                self._has_loaded = True
            else:
                self.resume(str(latest))
            return
        super().load_or_resume()

    def _init_model_weights(self) -> None:
        starts = self._load_from is None and not (self._resume and latest_checkpoint(self.work_dir))
        if starts:  # otherwise every weight is about to be loaded
            super()._init_model_weights()


def _built(dataset):
    """A data set and its list of samples. MMEngine's errors on an empty one do not say where it was looked for."""
    where = dataset.get("data_root") if isinstance(dataset, dict) else None
    try:
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        if hasattr(dataset, "full_init"):
            dataset.full_init()
    except (ValueError, IndexError) as error:
        raise DataError(f"{where or 'the data set'} cannot be listed, or is empty: {error}") from error
    return dataset


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint that a run saved last, in its folder or where its checkpoint hook was told to save."""
    numbered = [
        (int(path.stem.rpartition("_")[2]), path)
        for pattern in ("iter_*.pth", "epoch_*.pth")
        for path in Path(folder).glob(pattern)
        if path.stem.rpartition("_")[2].isdigit()
    ]
    if numbered:
        return max(numbered, key=lambda item: (item[1].stat().st_mtime, item[0]))[1]
    note = Path(folder) / "last_checkpoint"  # MMEngine's; a kill may leave it empty
    path = Path(note.read_text().strip()) if note.is_file() else Path()
    return path if path.is_file() else None
