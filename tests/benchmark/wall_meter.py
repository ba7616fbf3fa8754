"""A stand-in for the GPU that the benchmark measures with."""

import time

import torch


class WallMeter:
    """The CPU in the place of a GPU: clocks are the wall's, memory is not measured."""

    device = torch.device("cpu")
    cache_bytes = 4096

    def seconds(self, run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def allocated(self):
        return 0

    def peak(self, run):
        run()
        return 0

    def empty_cache(self):
        pass

    def copy_rate(self):
        source = torch.zeros(2**22)
        return 2 * 4 * source.numel() / self.seconds(source.clone)

    def graph(self, run):
        raise RuntimeError("a CPU has no graphs")
