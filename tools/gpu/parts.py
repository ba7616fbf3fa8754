"""The parts of a check-up (`checkup.py`): each writes what it finds at once, so that a time limit takes only the rest.

A part is a function of (folder of results, whether it rehearses on a CPU); it returns whether all is right.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from check_kernels import CASES, Case, Target, launches  # noqa: E402
from families import NAMES  # noqa: E402
from tune_plans import candidates, measure, median_ms  # noqa: E402

# The three shapes that most models run, whose launch plans are measured.
PLANNED = ("vim_tiny", "vmamba_tiny stage 1", "vmamba_tiny stage 2")
SCANS = "vim_b128", "ss2d_96_b128", "sequence", "volume"
BACKBONES = (
    "vmamba_tiny_s1l8",
    "vim_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "deit_tiny_patch16_224",
    "convnext_tiny",
)
_TINY = Case("tiny", 1, 2, 9, 32, 1, 2, shared=True, tables=True)


def _write(out: Path, name: str, content: dict) -> None:
    from vision_ssm.files import write_json

    write_json(out / name, content)


# What the machine is


def environment(out: Path, rehearse: bool) -> bool:
    """Versions, the GPU and its copy bandwidth, and which optional packages there are."""
    import torch

    found: dict[str, object] = dict(python=sys.version.split()[0], torch=torch.__version__, cores=os.cpu_count())
    found["packages"] = {
        name: importlib.util.find_spec(name) is not None
        for name in ("timm", "triton", "rich", "pytest", "xdist", "pytest_timeout", "hypothesis", "einops", "mamba_ssm",
                     "selective_scan_cuda")
    }  # fmt: skip
    _write(out, "environment.json", found)  # before anything that may fail
    found["machine"] = _machine(rehearse)
    _write(out, "environment.json", found)
    found["copy_gb_s"] = _meter(rehearse).copy_rate() / 1e9
    _write(out, "environment.json", found)
    if not rehearse:
        query = subprocess.run(["nvidia-smi"], capture_output=True, text=True)
        print(query.stdout or query.stderr)
    return True


def _machine(rehearse: bool) -> dict:
    """What figures depend on; a rehearsal's are marked, so that none of them is taken for a GPU's."""
    from vision_ssm.benchmark.meter import gpu_machine
    from vision_ssm.benchmark.timing import machine

    return machine() | dict(rehearsal=True, gpu=None) if rehearse else gpu_machine()


def _meter(rehearse: bool):
    if not rehearse:
        from vision_ssm.benchmark.meter import Meter

        return Meter()
    from benchmark.wall_meter import WallMeter

    return WallMeter()


# Kernels


def kernels(out: Path, rehearse: bool) -> bool:
    """Every family run against float64, then the shapes of the models compiled, on all cores."""
    found: dict[str, list] = dict(families=[], compiled=[])
    start = time.perf_counter()
    for result in _families(rehearse):
        found["families"].append(result)
        _write(out, "kernels.json", found)
    found["seconds_of_families"] = round(time.perf_counter() - start, 1)
    start = time.perf_counter()
    for result in _compiled(rehearse):
        found["compiled"].append(result)
        _write(out, "kernels.json", found)
    found["seconds_of_compiling"] = round(time.perf_counter() - start, 1)
    _write(out, "kernels.json", found)
    return not any(r["wrong"] for r in found["families"]) and not any(r.get("error") for r in found["compiled"])


def _families(rehearse: bool) -> Iterator[dict]:
    """Each family in a process of its own, many at a time: one that kills its process takes no other's along."""
    batches = [list(NAMES)] if rehearse else [[name] for name in NAMES]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for work in as_completed([pool.submit(_family_process, names) for names in batches]):
            yield from work.result()


def _family_process(names: list[str]) -> list[dict]:
    done = subprocess.run([sys.executable, HERE / "families.py", *names], capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ended = {result["family"] for result in results}
    reason = f"the process ended with {done.returncode}: {done.stderr.strip()[-500:]}"
    return results + [dict(family=name, errors={}, wrong=[reason]) for name in names if name not in ended]


def _compiled(rehearse: bool) -> Iterator[dict]:
    """Compile what the next parts launch, into Triton's cache on disk."""
    import torch

    capability = 90 if rehearse else int("{}{}".format(*torch.cuda.get_device_capability()))
    if rehearse:  # one kernel; `check_kernels.py` compiles them all
        work, most = [(next(case for case in CASES if case.quick), "")], 1
    else:
        work, most = [(case, "") for case in CASES], None
        work += [(case, text) for case in CASES if case.name in PLANNED for text in candidates(case)]
    os.environ.pop("TRITON_INTERPRET", None)  # of the processes that compile
    with ProcessPoolExecutor(1 if rehearse else os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for found in as_completed([pool.submit(compile_case, *item, capability, most) for item in work]):
            yield from found.result()


def compile_case(case: Case, plan: str, capability: int, most: int | None = None) -> list[dict]:
    """Compile the kernels that a case launches under a plan: seconds of each, few where the cache on disk has it."""
    import triton

    from vision_ssm.ops.gpu.plan import use_plan

    triton.runtime.driver.set_active(Target(capability))
    results = []
    with use_plan(plan):
        for kernel, arguments, options in launches(case)[:most]:
            start = time.perf_counter()
            result = dict(case=case.name, plan=plan, kernel=kernel.__name__)
            try:
                kernel.warmup(*arguments, grid=(1,), **options)
            except Exception as error:  # a candidate that asks for too much is no plan
                result["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            results.append(result | dict(seconds=round(time.perf_counter() - start, 2)))
    return results


# Tests

# By priority: what is wrong here makes all that follows worthless.
TESTS = "test_scan.py", "test_conv.py", "test_torch.py", "test_models.py"
LARGE = ("test_memory.py",)  # fills the memory: alone
_REHEARSED = "test_an_empty_batch or test_inference_mode or (test_matches_the_definition and mirrored)"


def tests(out: Path, rehearse: bool) -> bool:
    """The tests of the kernels on a GPU, in parallel; every result a line of JSON, failures with their messages."""
    folder = ROOT / "tests" / "gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "report_lines"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "120"]
    where = os.pathsep.join(filter(None, (str(HERE), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | dict(PYTHONPATH=where, REPORT_LINES=str(out.resolve() / "tests.jsonl"))
    if rehearse:
        runs = [[*(folder / name for name in TESTS[:2]), "-k", _REHEARSED]]
    else:
        many = ["-n", str(min(12, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
        runs = [[*(folder / name for name in TESTS), *many], [folder / name for name in LARGE]]
    codes = [subprocess.run([*command, *map(str, run)], cwd=ROOT, env=environment).returncode for run in runs]
    return not any(codes)


# Speed


def operators(out: Path, rehearse: bool) -> bool:
    """Scans beside mamba_ssm's kernel where it is installed, and their share of the copy bandwidth."""
    from vision_ssm.benchmark import cases, gpu_ops
    from vision_ssm.scan import cross

    meter = _meter(rehearse)
    rounds, seconds, chosen, names = 30, 6.0, cases.CASES, SCANS
    if rehearse:
        rounds, seconds = 3, 0.1
        chosen = (cases.Case("tiny", "a small cross-scan", 1, 8, (3, 3), 1, cross(), 2),)
        names = ("tiny",)
    rate = meter.copy_rate()
    results = gpu_ops.run(meter, names, rate, rounds, seconds, "mamba_ssm", chosen)
    return _collect(out, "gpu-ops.json", "ops", rehearse, rate, results)


def models(out: Path, rehearse: bool) -> bool:
    """Inference and training steps beside timm's models, memory, and the share of the scans."""
    from vision_ssm.benchmark import gpu_models
    from vision_ssm.ops import use_backend

    meter = _meter(rehearse)
    rate = meter.copy_rate()
    if rehearse:
        sizes = dict(rounds=3, seconds=0.1, batch=1, models=("vmamba_test",), side=32)
        measured = [("inference_b128", partial(gpu_models.zoo, meter, training=False, **sizes))]
        with use_backend("chunked"):  # of models the interpreter takes minutes
            return _collect(out, "gpu-models.json", "models", True, rate, _each(measured))
    sizes = dict(rounds=20, seconds=12.0, models=BACKBONES)
    measured: list[tuple[str, Callable[[], dict]]] = [
        ("inference_b128", partial(gpu_models.zoo, meter, batch=128, training=False, **sizes)),
        ("training_b128", partial(gpu_models.zoo, meter, batch=128, training=True, **sizes)),
        ("scan_share", partial(gpu_models.CASES["scan_share"][1], meter, 3, 10.0)),
        ("inference_b1", partial(gpu_models.zoo, meter, batch=1, training=False, **sizes)),
        ("copies_vmamba", partial(gpu_models.CASES["copies_vmamba"][1], meter, 10, 8.0)),
    ]
    return _collect(out, "gpu-models.json", "models", False, rate, _each(measured))


def _each(measured: list[tuple[str, Callable[[], dict]]]) -> Iterator[dict]:
    from vision_ssm.benchmark import gpu_models
    from vision_ssm.benchmark.gpu_ops import in_one_line

    for name, call in measured:
        try:
            result = call()
        except Exception as error:
            result = dict(error=in_one_line(error))
        yield dict(case=name, label=gpu_models.CASES[name][0]) | result


def _collect(out: Path, name: str, kind: str, rehearse: bool, rate: float, results: Iterator[dict]) -> bool:
    """Write results as the benchmark command does, which the README's figures are made from."""
    whole = dict(machine=_machine(rehearse), copy_gb_s=rate / 1e9) | {kind: []}
    for result in results:
        whole[kind].append(result)
        _write(out, name, whole)
    return not any("error" in result or result.get("failed") for result in whole[kind])


def plans(out: Path, rehearse: bool) -> bool:
    """Candidates of the table of launch plans, for the shapes that most models run."""

    def wall(run: Callable[[], object], seconds: float) -> tuple[float, float]:
        start = time.perf_counter()
        run()
        return (1e3 * (time.perf_counter() - start),) * 2

    record = dict(machine=_machine(rehearse), cases=[])
    for case in [_TINY] if rehearse else [case for case in CASES if case.name in PLANNED]:
        sizes = dict(device="cpu", clock=wall, most=1) if rehearse else dict(clock=median_ms)
        for found in measure(case, 0.1, **sizes):
            record["cases"].append(found)
            _write(out, "gpu-plans.json", record)
    return bool(record["cases"])


PARTS: dict[str, Callable[[Path, bool], bool]] = {
    part.__name__: part for part in (environment, kernels, tests, operators, models, plans)
}
INTERPRETED = (operators, plans)  # in a rehearsal these run our kernels in their own process


def main() -> int:
    """`parts.py PART FOLDER [--rehearse]`, as `checkup.py` calls it."""
    part, out, rehearse = PARTS[sys.argv[1]], Path(sys.argv[2]), "--rehearse" in sys.argv[3:]
    if rehearse and part in INTERPRETED:
        from ops.interpreter import interpreted

        from vision_ssm.ops import use_backend

        with interpreted(), use_backend("triton"):
            return int(not part(out, rehearse))
    return int(not part(out, rehearse))


if __name__ == "__main__":
    sys.exit(main())
