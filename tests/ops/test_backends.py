"""Which backend runs: contexts of threads, tasks and generators, and the backward pass of what ran inside."""

import asyncio
import threading

import pytest
import torch
from ops import scan_cases

from vision_ssm.ops import available_backends, causal_conv1d, cpu, current_backend, scan_tokens, use_backend
from vision_ssm.ops.gpu.plan import plan, use_plan

DEFAULT = current_backend()


def _in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_choose_for_themselves():
    with use_backend("reference"):
        assert _in_thread(current_backend) == DEFAULT

        def inside():
            with use_backend("chunked"):
                return current_backend()

        assert _in_thread(inside) == "chunked"
        assert current_backend() == "reference"
    assert current_backend() == DEFAULT


def test_two_threads_that_overlap_leave_nothing_behind():
    entered, left = threading.Event(), threading.Event()

    def first():
        with use_backend("reference"):
            entered.set()
            left.wait(10)
            return current_backend()

    found = []
    thread = threading.Thread(target=lambda: found.append(first()))
    thread.start()
    entered.wait(10)
    with use_backend("chunked"):
        left.set()
        thread.join()
        assert (found, current_backend()) == (["reference"], "chunked")
    assert current_backend() == _in_thread(current_backend) == DEFAULT


def test_tasks_choose_for_themselves():
    async def task(name: str, ready: asyncio.Event, other: asyncio.Event) -> str:
        with use_backend(name):
            ready.set()
            await other.wait()
            return current_backend()

    async def both():
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("reference", a, b), task("chunked", b, a)), current_backend()

    assert asyncio.run(both()) == (["reference", "chunked"], DEFAULT)


def _inside(name):
    with use_backend(name):
        yield current_backend()


@pytest.mark.parametrize("first_out", [0, 1])
def test_generators_that_are_left_in_any_order(first_out):
    running = [_inside("reference"), _inside("chunked")]
    assert [next(generator) for generator in running] == ["reference", "chunked"]
    running.pop(first_out).close()
    running.pop().close()
    assert current_backend() == DEFAULT


def test_as_a_decorator():
    @use_backend("reference")
    def run():
        return current_backend()

    assert run() == run() == "reference" and current_backend() == DEFAULT


@pytest.mark.parametrize("backend", available_backends())
def test_a_backward_pass_runs_where_its_forward_pass_ran(backend, monkeypatch):
    seen = []
    for owner, name in ((cpu, "scan_backward"), (cpu, "conv_backward")):
        run = getattr(cpu, name)
        monkeypatch.setattr(owner, name, lambda *args, run=run: seen.append("cpu") or run(*args))
    tensors, _ = scan_cases.arguments()
    tensors["u"].requires_grad_()
    weight = torch.randn(1, 7, 3)

    def forward():
        return scan_tokens(**tensors).sum() + causal_conv1d(tensors["u"], weight).sum()

    with use_backend(backend):
        y = forward()
        (inside,) = torch.autograd.grad(y, tensors["u"], retain_graph=True)
    calls = len(seen)
    with use_backend("chunked"):
        (outside,) = torch.autograd.grad(y, tensors["u"])
    assert torch.equal(inside, outside)
    assert (calls, len(seen)) == ((2, 4) if backend == "cpu" else (0, 0))


def test_plans_of_two_contexts_leave_nothing_behind():
    before = plan("forward", 8, 640, 32, 16, False)

    def inside(text):
        with use_plan(text):
            yield

    a, b = inside("segments=2"), inside("segments=3")
    next(a), next(b)
    a.close()
    assert plan("forward", 8, 640, 32, 16, False).segments == 3
    b.close()
    assert plan("forward", 8, 640, 32, 16, False) == before
