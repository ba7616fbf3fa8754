"""Launch plans: what the kernels rely on, and what forces a plan."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_ssm.ops.gpu.plan import CHUNK, Plan, plan, states_shape, use_plan

MOST = 16  # states of a program
SHAPES = dict(
    kernel=st.sampled_from(["forward", "backward"]),
    sequences=st.integers(1, 5000),
    steps=st.one_of(st.integers(1, 300), st.integers(1, 2**31 - 1)),
    width=st.one_of(st.integers(1, 130), st.sampled_from([192, 384, 768, 1536, 4097])),
    d_state=st.integers(1, MOST),
    packable=st.booleans(),
)
# Batch 1 of a Vim layer: few programs, which a plan cuts into segments.
SHORT = dict(kernel="forward", sequences=1, steps=197, width=384, d_state=16, packable=True)
BAD = {"tile", "tile=", "tile=x", "tile=0", "tile=-1", "tile=1.5", "speed=3", "block=32", "tile=4,pack=1", "=4", "4"}


@settings(max_examples=300)
@given(st.fixed_dictionaries(SHAPES))
def test_what_kernels_rely_on(shape):
    p = plan(**shape)
    chunks = -(-shape["steps"] // CHUNK)
    assert p.tile & (p.tile - 1) == 0 and CHUNK % p.tile == 0
    assert p.pack in (1, 2) and p.block == 32 * p.pack
    assert p.pack == 1 or (shape["packable"] and shape["width"] % 64 == 0)
    assert 1 <= p.segments <= chunks
    length = -(-chunks // p.segments) * CHUNK
    assert p.segments * length >= shape["steps"]
    assert p == plan(**shape)


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("packable", [False, True])
def test_more_states_leave_registers_for_fewer_steps(kernel, packable):
    plans = [plan(kernel, 4096, 4096, 64, d_state, packable) for d_state in range(1, MOST + 1)]
    values = [p.tile * p.pack for p in plans]
    assert values == sorted(values, reverse=True)


def test_segments_fill_a_gpu_and_no_more():
    assert plan(**SHORT | dict(steps=CHUNK)).segments == 1
    assert plan(**SHORT).segments == 4
    assert plan(**SHORT | dict(sequences=4096)).segments == 1
    for sequences in (1, 7, 64, 500):
        p = plan("forward", sequences, 10**6, 32, 16, False)
        assert 1000 <= sequences * p.segments <= 3000


@settings(max_examples=100)
@given(st.fixed_dictionaries(SHAPES), st.integers(1, 300), st.sampled_from([1, 2, 4, 8]))
def test_forced(shape, segments, tile):
    free, chunks = plan(**shape), -(-shape["steps"] // CHUNK)
    with use_plan(f"segments={segments}  tile={tile} pack=2 registers=96"):
        p = plan(**shape)
    assert p == Plan(tile, 2 if shape["packable"] else free.pack, min(segments, chunks), 96)
    assert plan(**shape) == free


@pytest.mark.parametrize("text", sorted(BAD))
def test_text_of_another_form(text, monkeypatch):
    message = f"launch plan '{text}': expected NAME=NUMBER with a name of pack, registers, segments, tile"
    with pytest.raises(ValueError, match=message), use_plan(text):
        pass
    monkeypatch.setenv("VISION_SSM_TRITON_PLAN", text)
    with pytest.raises(ValueError, match=message):
        plan(**SHORT)


def test_contexts_and_the_environment(monkeypatch):
    free = plan(**SHORT)
    monkeypatch.setenv("VISION_SSM_TRITON_PLAN", "segments=2")
    assert plan(**SHORT) == Plan(free.tile, free.pack, 2)
    with use_plan("segments=3"):
        assert plan(**SHORT).segments == 3
        with use_plan("tile=2"):
            assert plan(**SHORT) == Plan(2, free.pack, free.segments)
        with pytest.raises(KeyError), use_plan("segments=1"):
            raise KeyError
        assert plan(**SHORT).segments == 3
        with pytest.raises(ValueError), use_plan("tile=none"):
            pass
        assert plan(**SHORT).segments == 3
    assert plan(**SHORT).segments == 2
    with use_plan(""):  # forces nothing
        assert plan(**SHORT).segments == 2


@pytest.mark.parametrize(("steps", "chunks"), [(1, 1), (CHUNK - 1, 1), (CHUNK, 1), (CHUNK + 1, 2), (1000, 16)])
def test_states_shape(steps, chunks):
    assert states_shape(3, 4, steps, 96, 16) == (12, chunks * 16 * 96)
