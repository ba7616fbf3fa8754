"""What a process of its own is asked to do in the tests; imports nothing, so that it starts at once."""

import os


def divide(by: int) -> dict:
    return dict(result=1 / by)


def leave(status: int) -> dict:
    os._exit(status)


def take_memory(mib: int) -> dict:
    """Holds that many MiB."""
    kept = [b"1" * 2**20 for _ in range(mib)]
    return dict(mib=len(kept))
