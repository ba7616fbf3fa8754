"""Wrong arguments of the selective scan: an error that names the argument, on every entry point, before any kernel."""

import pytest
import torch
from ops.scan_cases import arguments

from vision_ssm.ops import available_backends, scan_tokens, selective_scan, selective_scan_nd, use_backend

BACKENDS = available_backends()
TABLES = torch.arange(17, dtype=torch.int32).expand(2, 2, 17).contiguous()


def _at(tables: torch.Tensor, row: int, value: int) -> torch.Tensor:
    tables = tables.clone()
    tables[row, 1, 5] = value
    return tables


def _new(*shape: int, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


# Arguments that differ from good ones of batch 2, 17 tokens, 7 channels, 4 states, 2 paths; error and message.
BAD = [
    (dict(u=_new(2, 17, 7)), ValueError, r"`u` is \(2, 17, 7\)"),
    (dict(u=_new(2, 3, 17, 7)), ValueError, "`u` has 3 sequences: expected 1 or 2"),
    (dict(u=_new(2, 1, 0, 7), out_tokens=None), ValueError, "`u` has length 0"),
    (dict(u=_new(2, 1, 17, 6)), ValueError, r"`A` is \(2, 7, 4\)"),
    (dict(u=_new(2, 1, 17, 7, dtype=torch.int64)), TypeError, "`u` is torch.int64: expected a floating-point tensor"),
    (dict(dt=_new(2, 2, 17, 6)), ValueError, r"`dt` is \(2, 2, 17, 6\)"),
    (dict(dt=_new(2, 17, 7)), ValueError, r"`dt` is \(2, 17, 7\)"),
    (dict(dt=_new(2, 1, 17, 7)), ValueError, r"`dt` is \(2, 1, 17, 7\)"),
    (dict(dt=_new(2, 2, 17, 7, dtype=torch.int32)), TypeError, "`dt` is torch.int32"),
    (dict(A=_new(7, 4)), ValueError, r"`A` is \(7, 4\): expected \(paths, channels, d_state\)"),
    (dict(A=_new(2, 7, 0)), ValueError, r"`A` is \(2, 7, 0\)"),
    (dict(A=_new(2, 7, 4, dtype=torch.complex64)), TypeError, "`A` is torch.complex64.*complex A is not supported"),
    (dict(B=_new(2, 2, 17, 4)), ValueError, r"`B` is \(2, 2, 17, 4\)"),
    (dict(B=_new(2, 2, 17, 2, 4)), ValueError, "`B` has 2 groups: expected a divisor of 7"),
    (dict(B=_new(2, 2, 17, 0, 4)), ValueError, "`B` has 0 groups"),
    (dict(B=_new(2, 2, 17, 1, 3)), ValueError, r"`B` is \(2, 2, 17, 1, 3\)"),
    (dict(C=_new(2, 2, 17, 7, 4)), ValueError, r"`C` is \(2, 2, 17, 7, 4\)"),
    (dict(C=_new(2, 2, 17, 1, 4, dtype=torch.bool)), TypeError, "`C` is torch.bool"),
    (dict(D=_new(7)), ValueError, r"`D` is \(7,\): expected \(paths, channels\) = \(2, 7\)"),
    (dict(D=_new(2, 7, device="meta")), ValueError, "`D` is on meta: expected cpu, the device of `u`"),
    (dict(u=_new(2, 1, 17, 7, device="meta")), ValueError, "`dt` is on cpu: expected meta"),
    (dict(dt_bias=_new(1, 7)), ValueError, r"`dt_bias` is \(1, 7\)"),
    (dict(dt_weight=_new(2, 7, 3)), ValueError, r"`dt_weight` is \(2, 7, 3\)"),
    (dict(dt_weight=_new(2, 6, 7)), ValueError, r"`dt_weight` is \(2, 6, 7\)"),
    (dict(z=_new(2, 17, 7)), ValueError, r"`z` is \(2, 17, 7\)"),
    (dict(z=_new(2, 2, 17, 7)), ValueError, r"`z` is \(2, 2, 17, 7\)"),
    (dict(z=_new(2, 1, 9, 7)), ValueError, r"`z` is \(2, 1, 9, 7\)"),
    (dict(out_tokens=9), ValueError, "`out_tokens` is 9: expected 17"),
    (dict(out_tokens=0, tables=TABLES), ValueError, "`out_tokens` is 0"),
    (dict(tables=TABLES.long()), TypeError, "`tables` is torch.int64: expected torch.int32"),
    (dict(tables=TABLES.float()), TypeError, "`tables` is torch.float32: expected torch.int32"),
    (dict(tables=TABLES[0]), ValueError, r"`tables` is \(2, 17\): expected \(2, paths, steps\) with 2 paths"),
    (dict(tables=TABLES[:, :1].contiguous()), ValueError, r"`tables` is \(2, 1, 17\)"),
    (dict(tables=TABLES[:, :, :0].contiguous()), ValueError, r"`tables` is \(2, 2, 0\)"),
    (dict(tables=TABLES[:, :, ::2]), ValueError, "`tables` is not contiguous"),
    (dict(tables=TABLES.to("meta")), ValueError, "`tables` is on meta: expected cpu"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_scan_tokens(changes, kind, message):
    tensors, options = arguments()
    with pytest.raises(kind, match=message):
        scan_tokens(**(tensors | options | changes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("row", "value"), [(0, 17), (0, -2), (1, 17), (1, -2)])
def test_tokens_out_of_range(backend, row, value):
    tensors, options = arguments()
    options["tables"] = _at(TABLES, row, value)
    with use_backend(backend), pytest.raises(ValueError, match="`tables` holds a token that is out of range"):
        scan_tokens(**tensors, **options)


def _mamba(**changes):
    tensors = dict(
        u=_new(2, 6, 9), delta=_new(2, 6, 9), A=_new(6, 4), B=_new(2, 4, 9), C=_new(2, 4, 9), D=_new(6), z=_new(2, 6, 9)
    )
    return tensors | dict(delta_bias=_new(6)) | changes


BAD_MAMBA = [
    (dict(u=_new(6, 9)), ValueError, r"`u` is \(6, 9\): expected \(batch, channels, length\)"),
    (
        dict(u=_new(2, 6, 0), delta=_new(2, 6, 0), B=_new(2, 4, 0), C=_new(2, 4, 0), z=None),
        ValueError,
        "`u` has length 0",
    ),
    (dict(delta=_new(2, 6, 8)), ValueError, r"`delta` is \(2, 6, 8\)"),
    (dict(A=_new(1, 6, 4)), ValueError, r"`A` is \(1, 6, 4\): expected \(channels, d_state\)"),
    (dict(A=_new(6, 4, dtype=torch.complex64)), TypeError, "`A` is torch.complex64.*complex A is not supported"),
    (dict(B=_new(9)), ValueError, r"`B` is \(9,\): expected \(channels, d_state\), \(batch, d_state, length\)"),
    (dict(B=_new(5, 4)), ValueError, r"`B` is \(5, 4\): expected \(6, d_state\)"),
    (dict(C=_new(5, 4)), ValueError, r"`C` is \(5, 4\): expected \(6, d_state\)"),
    (dict(B=_new(2, 4, 4, 9), C=_new(2, 4, 4, 9)), ValueError, "`B` has 4 groups: expected a divisor of 6"),
    (dict(C=_new(2, 4, 4, 9)), ValueError, "`C` (is|has) "),
    (dict(C=_new(2, 5, 9)), ValueError, "`C` is "),
    (dict(D=_new(5)), ValueError, "`D` is "),
    (dict(z=_new(2, 6, 8)), ValueError, "`z` is "),
    (dict(z=_new(9)), ValueError, "`z` is "),
    (dict(B=_new(2, 0, 4, 9)), ValueError, "`B` has 0 groups"),
    (dict(delta=_new(2, 6, 9, dtype=torch.int32)), TypeError, "`delta` is torch.int32"),
    (dict(delta_bias=_new(5)), ValueError, "`delta_bias` is "),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD_MAMBA, ids=[message for *_, message in BAD_MAMBA])
def test_selective_scan(changes, kind, message):
    with pytest.raises(kind, match=message):
        selective_scan(**_mamba(**changes))


def _grid(**changes):
    tensors = dict(
        x=_new(2, 3, 5, 6), dt=_new(2, 4, 3, 5, 6), A=_new(4, 6, 2), B=_new(2, 4, 3, 5, 2), C=_new(2, 4, 3, 5, 2)
    )
    return tensors | changes


BAD_GRID = [
    (dict(x=_new(2, 5, 3, 6)), r"`x` is \(2, 5, 3, 6\): expected .* grid of `B`, \(3, 5\)"),
    (dict(x=_new(2, 15, 6)), r"`x` is \(2, 15, 6\)"),
    (dict(x=_new(2, 2, 3, 5, 6)), "`x` has 2 sequences"),
    (dict(z=_new(2, 15, 6)), r"`z` is \(2, 15, 6\): expected \(2, 3, 5, 6\)"),
    (dict(dt=_new(2, 4, 5, 3, 6)), "`dt` is "),
    (dict(C=_new(2, 4, 5, 3, 2)), "`C` is "),
    (dict(D=_new(6)), "`D` is "),
    (dict(B=_new(2, 4)), r"`B` is \(2, 4\): expected \(batch, K, "),
]


@pytest.mark.parametrize(("changes", "message"), BAD_GRID, ids=[message for _, message in BAD_GRID])
def test_selective_scan_nd(changes, message):
    with pytest.raises(ValueError, match=message):
        selective_scan_nd(**_grid(**changes))
