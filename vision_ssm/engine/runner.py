"""MMEngine's runner with safe checkpoints and exact resume; any MMEngine config runs on it unchanged."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, RUNNERS
from mmengine.runner import Runner as _Runner
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from ..checkpoints import CheckpointError, check_state_dict, read, unwrap
from ..files import write_atomically
from .checkpoint_hook import CheckpointHook
from .data_check import DataCheckHook
from .loops import EpochLoop, IterLoop
from .order import DataError, Order, Seeded, random_state, restore
from .plain import plain, revived

__all__ = ["Runner"]

_LOOPS = {"IterBasedTrainLoop": IterLoop, "EpochBasedTrainLoop": EpochLoop}


@RUNNERS.register_module(name="VisionSSMRunner")
class Runner(_Runner):
    """MMEngine's `Runner` with these differences.

    - Checkpoints hold tensors and plain values only, load weights-only, and are replaced in one step. MMEngine's own
      are read too, without running code from them.
    - A resumed run ends with the bits of an unbroken one (on one machine): checkpoints hold the random-number state of
      every process, and the order and augmentation of the data follow from the seed and the step (`order.py`).
    - Weights load strictly; a checkpoint that does not fit is an error that names the keys.
    - A sample that cannot be read is an error that names its file.
    """

    _random_states: list[dict] | None = None  # to restore

    # Data

    def _ordered_dataloader(self, cfg: dict) -> DataLoader:
        """A training loader in an order that can be resumed."""
        cfg = copy.deepcopy(cfg)
        dataset = cfg.pop("dataset")
        with _naming_data(dataset):
            if isinstance(dataset, dict):
                dataset = DATASETS.build(dataset)
            if hasattr(dataset, "full_init"):
                dataset.full_init()
        if isinstance(dataset, IterableDataset) or "num_batch_per_epoch" in cfg:
            return self.build_dataloader(cfg | {"dataset": dataset}, seed=self.seed)
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
        return DataLoader(
            Seeded(dataset),
            batch_sampler=Order(build, self.seed, get_rank()),
            collate_fn=collate,
            generator=torch.Generator(),  # workers' seeds must not come from the model's random numbers
            **cfg,
        )

    @staticmethod
    def build_dataloader(dataloader, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader:
        """As MMEngine's; data that cannot be listed is an error that names its folder."""
        with _naming_data(dataloader["dataset"] if isinstance(dataloader, dict) else None):
            return _Runner.build_dataloader(dataloader, seed, diff_rank_seed)

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

    def register_hook(self, hook, priority=None) -> None:
        """As MMEngine's, with the stock checkpoint hook replaced."""
        if isinstance(hook, dict) and hook.get("type") == "CheckpointHook":
            hook = dict(hook, type=CheckpointHook)
        super().register_hook(hook, priority)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """As MMEngine's, with a look at the data before training."""
        hooks = dict(data_check=dict(type=DataCheckHook)) | (hooks or {})
        if hooks["data_check"] is None:
            del hooks["data_check"]
        super().register_default_hooks(hooks)

    # Saving

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """As MMEngine's, of plain values and in one step. Every process must call it."""
        states = all_gather_object(random_state()) if get_world_size() > 1 else [random_state()]
        if not is_main_process():
            return
        self._current_states = states
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
            checkpoint["random_states"] = self._current_states
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
        checkpoint = dict(read(filename))
        if "message_hub" in checkpoint:
            checkpoint["message_hub"] = revived(checkpoint["message_hub"])
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        state_dict = unwrap(checkpoint)
        convert = getattr(getattr(model, "backbone", None), "convert_state_dict", None)
        if convert:
            state_dict = convert(state_dict, "backbone.")
        check_state_dict(state_dict, model.state_dict(), model, filename)
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
        super().resume(filename, *args, **kwargs)
        order = getattr(self.train_dataloader, "batch_sampler", None)
        if isinstance(order, Order):
            order.seed = self.seed
        states = content.get("random_states")
        if states and len(states) == get_world_size():
            self._random_states = states
        else:
            found = f"those of {len(states)} processes" if states else "none"
            self.logger.warning(
                f"{filename} holds {found} of the {get_world_size()} processes' random-number states: "
                "the run continues, but not with the bits of an unbroken one"
            )

    def restore_random_state(self) -> None:
        """Put this process's generators where the checkpoint was saved; nothing if the run was not resumed."""
        if self._random_states is not None:
            restore(self._random_states[get_rank()])
            self._random_states = None

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


@contextmanager
def _naming_data(dataset) -> Iterator[None]:
    """Errors of a data set's list of samples say where it was looked for: MMEngine's on an empty one do not."""
    try:
        yield
    except (ValueError, IndexError) as error:
        where = dataset.get("data_root") if isinstance(dataset, dict) else None
        raise DataError(f"{where or 'the data set'} cannot be listed, or is empty: {error}") from error


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the most steps that a run has saved in its folder."""
    numbered = [
        (int(path.stem.rpartition("_")[2]), path)
        for pattern in ("iter_*.pth", "epoch_*.pth")
        for path in Path(folder).glob(pattern)
        if path.stem.rpartition("_")[2].isdigit()
    ]
    return max(numbered, key=lambda item: (item[1].stat().st_mtime, item[0]))[1] if numbered else None
