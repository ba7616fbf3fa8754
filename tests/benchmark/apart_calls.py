"""What a process of its own is asked to do in the tests; imports little, so that most of it starts at once."""

import os


def divide(by: int) -> dict:
    return dict(result=1 / by)


def leave(status: int) -> dict:
    os._exit(status)


def take_memory(mib: int) -> dict:
    """Holds that many MiB."""
    kept = [b"1" * 2**20 for _ in range(mib)]
    return dict(mib=len(kept))


def hold_and_free(mib: int) -> dict:
    """MiB that the benchmark says were added by a tensor of that many, which is gone when it is asked."""
    import torch

    from vision_ssm.benchmark.footprint import _Memory

    memory = _Memory("cpu")
    torch.ones(mib, 2**18)
    return dict(peak_mib=memory.peak_mib())
