"""The abdominal phantoms as a data set of volumes; written where they are missing."""

from mmengine.dist import barrier, is_main_process
from mmengine.registry import DATASETS

from ..volumes import VolumeDataset
from .phantoms import Phantoms, write

__all__ = ["PhantomVolumes"]


@DATASETS.register_module()
class PhantomVolumes(VolumeDataset):
    """Phantoms in BTCV's layout.

    Args:
        data_root: folder that the phantoms are in, or are written to.
        phantoms: arguments of `Phantoms`.
        **kwargs: of `VolumeDataset`.
    """

    def __init__(self, data_root: str, phantoms: dict | None = None, **kwargs):
        if is_main_process():
            write(data_root, Phantoms(**(phantoms or {})))
        barrier()
        super().__init__(data_root=data_root, **kwargs)
