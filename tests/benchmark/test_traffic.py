"""Bytes counted by hand, rooflines and predictions."""

import pytest

from vision_ssm.benchmark import prediction, traffic
from vision_ssm.benchmark.cases import CASES, Case, make_problem
from vision_ssm.scan import cross


def test_bytes_that_must_move_by_hand():
    plain = Case("plain", "a plain scan", 2, 8, (19,), 4, gate=True)
    problem = make_problem(plain, "cpu")
    tokens, channels, states = 2 * 19, 8, 4
    inputs = tokens * (3 * channels + 2 * states) * 2 + channels * (states + 2) * 4
    output = tokens * channels * 2
    assert traffic.size(problem.inputs.values()) == inputs
    assert traffic.must_move(inputs, output, False) == inputs + output
    # backward: the inputs and dy are read, the inputs' gradients written
    assert traffic.must_move(inputs, output, True) == (inputs + output) + (inputs + output) + inputs


def test_bytes_of_our_plain_forward_by_hand():
    case = Case("", "", 128, 384, (197,), 16, gate=True)
    tokens = 128 * 197
    moved = traffic.moved_forward(case, training=False)
    assert moved == {
        # B and C joined in bfloat16, then converted
        "rows to float32": tokens * 32 * (2 + 2 + 2 + 4),
        # u, dt, z in bfloat16, B and C in float32; 1536 programs fill the GPU, so the sequences stay whole
        "scan: inputs, tables": tokens * (3 * 384 * 2 + 32 * 4),
        "scan: outputs of the paths, last state": tokens * 384 * 2 + 128 * 16 * 384 * 4,
    }
    training = traffic.moved_forward(case, training=True)
    assert training.pop("scan: states kept") == 128 * 4 * 16 * 384 * 4  # before each of four chunks of 64 steps
    assert training.pop("scan: output before the gate") == tokens * 384 * 2
    assert training == moved


def test_bytes_of_our_cross_scan_by_hand():
    case = Case("", "", 128, 96, (56, 56), 1, cross(), 6)
    tokens, width = 128 * 3136, 6 + 2
    moved = traffic.moved_forward(case, training=False)
    assert moved == {
        "projection: x, its rows": tokens * (96 + 4 * width) * 2,
        "rows to float32": tokens * 4 * width * (2 + 4),  # they are the projection's output, so nothing is joined
        "scan: inputs, tables": tokens * (96 * 2 + 4 * width * 4) + 2 * 4 * 3136 * 4,
        "scan: outputs of the paths, last state": tokens * 4 * 96 * 2 + 128 * 4 * 96 * 4,
        "sum of the paths: parts, y": tokens * (4 + 1) * 96 * 2,
    }
    back = traffic.moved_backward(case)
    assert back["scan: gradients of u and dt"] == 2 * tokens * 4 * 96 * 2
    assert back["scan: gradients of B and C by block"] == tokens * 4 * 2 * 4 * 3  # 96 channels are three blocks of 32
    assert back["sum of both gradients of x"] == 3 * tokens * 96 * 2


def test_segments_move_their_ends_too():
    long, short = (Case("", "", 1, 64, (tokens,), 16) for tokens in (2**18, 64))
    assert {"ends of segments: inputs, ends", "scan: carries"} <= traffic.moved_forward(long, False).keys()
    assert not any("segments" in name for name in traffic.moved_backward(short))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ours_moves_no_less_than_must_move(case):
    e, tokens = case.dtype.itemsize, case.batch * case.tokens
    wide = tokens * case.channels * e
    inputs = wide if case.rank else (2 + case.gate) * wide + tokens * 2 * case.d_state * e
    forward = sum(traffic.moved_forward(case, True).values())
    assert forward >= inputs + wide
    assert forward + sum(traffic.moved_backward(case).values()) >= traffic.must_move(inputs, wide, True)


def test_roofline():
    assert traffic.roofline(4 * 10**9, milliseconds=2.0, copy_rate=4e12) == pytest.approx(0.5)


def test_predictions_by_hand():
    found = {case.name: prediction.predicted_ms(case, False) for case in CASES}
    values = 128 * 3136 * 96 * 4
    assert found["ss2d_96_b128"][1] == pytest.approx(1e3 * values * 77 / 32 / (132 * 4 * 1.755e9))
    assert found["sequence"][1] == pytest.approx(1e3 * 1.76 * 2**18 * 64 * 180 / 32 / (132 * 4 * 1.755e9))
    assert found["vim_b1"] is None  # decided by latency, of which the model knows nothing
    for case in CASES:
        if found[case.name]:
            fastest, slowest = prediction.predicted_ms(case, True)
            assert found[case.name][0] < fastest <= slowest
