"""The tool that compiles GPU kernels without a GPU: what it counts and what it objects to."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA builds")

TOOL = Path(__file__).parents[1] / "tools" / "gpu" / "check_kernels.py"
spec = importlib.util.spec_from_file_location("check_kernels", TOOL)
check_kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_kernels)

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   FADD R2, R2, R3 ;
.L_x_2:
        /*0020*/                   FFMA R4, R2, R3, R4 ;
        /*0030*/                   MUFU.EX2 R5, R4 ;
        /*0040*/              @P0  SHFL.BFLY PT, R6, R5, 0x1, 0x1f ;
        /*0050*/              @!P1 BRA `(.L_x_2) ;
        /*0060*/                   STG.E [R8.64], R5 ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
        /*0080*/                   BAR.SYNC 0x0 ;
        /*0090*/                   EXIT ;
"""


def test_the_innermost_loop_is_counted():
    assert check_kernels.hottest_loop(LISTING) == dict(FFMA=1, MUFU=1, SHFL=1, BRA=1)


def test_without_a_loop_everything_is():
    assert check_kernels.hottest_loop("/*0000*/ FADD R2, R2, R3 ;\n/*0010*/ EXIT ;") == dict(FADD=1, EXIT=1)


def test_objections():
    fine = dict(case="a", capability=90, kernel="scan_forward", spills=0, d_state=16, instructions=10.0, barriers=0)
    fine |= dict(shuffles=0, registers=168)
    assert check_kernels.complaints(fine) == []
    for change, text in (
        (dict(spills=8), "spills 8 bytes, allowed are 0"),
        (dict(barriers=2), "waits at 2 barriers"),
        (dict(shuffles=4), "shuffles 4 times"),
        (dict(instructions=13.0), "takes 13.0 instructions a step, allowed are 12.5"),
    ):
        (complaint,) = check_kernels.complaints(fine | change)
        assert complaint == f"a, sm_90, scan_forward: {text}"
    assert check_kernels.complaints(fine | dict(kernel="scan_backward", shuffles=4, spills=96, instructions=30)) == []


def test_quick_cases_reach_every_kernel_of_the_scan():
    names = {
        kernel.__name__ for case in check_kernels.CASES if case.quick for kernel, *_ in check_kernels.launches(case)
    }
    assert names >= {"scan_forward", "scan_ends", "scan_backward", "scan_adjoint_ends", "carry_over", "merge_paths"}


def test_launches_carry_what_the_models_give():
    """One image of Vim is cut into segments, a batch is not; the tables are known to be permutations."""
    cases = {case.name: case for case in check_kernels.CASES}
    sizes = {}
    for name in ("vim_tiny", "vim_tiny, one image"):
        (forward,) = (a for kernel, a, _ in check_kernels.launches(cases[name]) if kernel.__name__ == "scan_forward")
        sizes[name] = forward[0].sizes
        assert not forward[0].c.PADS.value and forward[0].c.PAIRED.value and forward[0].inputs.read is not None
    assert sizes["vim_tiny"].segments == 1 < sizes["vim_tiny, one image"].segments
