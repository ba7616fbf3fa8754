"""Token tables: what stands in them, and that caching does not show."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vision_ssm.ops import scan_tokens
from vision_ssm.scan import (
    Atrous,
    Hilbert,
    Middle,
    Restored,
    Window,
    bidirectional,
    column,
    cross,
    path_text,
    row,
    scan_tables,
)
from vision_ssm.scan.tables import _cached

LIKE = torch.zeros(1)
PATHS = path_text([row(), Window(2).reversed(), Restored(column())])


def test_rows_are_what_the_paths_read_and_write():
    tables = scan_tables(PATHS, [3, 4], LIKE)
    assert tables.shape == (2, 3, 16) and tables.dtype == torch.int32 and tables.is_contiguous()
    for k, path in enumerate((row(), Window(2).reversed(), Restored(column()))):
        for which, order in enumerate((path.order((3, 4)), path.restore((3, 4)))):
            assert tables[which, k, : len(order)].tolist() == order.tolist()
            assert (tables[which, k, len(order) :] == -1).all()  # shorter paths end in pads


def test_in_order():
    """Sequences that were gathered before are read one token after another, pads included."""
    tables = scan_tables(PATHS, [3, 4], LIKE, True)
    assert (tables[0] == torch.arange(16)).all()
    assert torch.equal(tables[1], scan_tables(PATHS, [3, 4], LIKE)[1])


def test_cache():
    first = scan_tables(PATHS, [3, 4], LIKE)
    assert scan_tables(PATHS, (3, 4), torch.ones(2)) is first
    assert scan_tables(PATHS, [4, 3], LIKE) is not first
    assert scan_tables(PATHS, [3, 4], LIKE, True) is not first


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("paths", [PATHS, path_text(cross()), path_text([Middle(Hilbert()), Middle(Atrous(2))])])
def test_operator_equals_cache(paths, in_order):
    ours = torch.ops.vision_ssm.scan_tables(paths, [5, 4], in_order, torch.device("cpu"))
    cached = scan_tables(paths, [5, 4], LIKE, in_order)
    assert torch.equal(ours, cached) and ours is not cached
    ours.zero_()
    assert torch.equal(scan_tables(paths, [5, 4], LIKE, in_order), cached) and cached.any()  # it gave a copy
    torch.library.opcheck(torch.ops.vision_ssm.scan_tables, (paths, [5, 4], in_order, torch.device("cpu")))


def test_fake_tensors():
    expected = scan_tables(PATHS, [6, 7], LIKE)
    with FakeTensorMode() as mode:
        tables = scan_tables(PATHS, [6, 7], mode.from_tensor(LIKE))
    assert tables.shape == expected.shape and tables.dtype == expected.dtype
    assert type(scan_tables(PATHS, [6, 7], LIKE)) is torch.Tensor


def test_a_new_grid_in_fake_mode_does_not_enter_the_cache():
    with FakeTensorMode() as mode:
        scan_tables(PATHS, [9, 2], mode.from_tensor(LIKE))
    assert scan_tables(PATHS, [9, 2], LIKE)[0, 0].tolist()[:18] == list(range(18))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_a_new_grid_under_a_transform(transform):
    """The first pass that needs a table may be one of `torch.func`; what it leaves in the cache serves all others."""
    _cached.cache_clear()
    one, paths = torch.ones(1, 1, 12, 2), path_text([column()])

    def scan(u):
        tables = scan_tables(paths, [3, 4], u)
        y = scan_tokens(u * one, one, -torch.ones(1, 2, 1), one[..., None, :1], one[..., None, :1], tables=tables)
        return y.square().sum()

    u = torch.tensor(0.5) if transform is torch.func.grad else torch.rand(3)
    found = transform(scan)(u)
    tables = scan_tables(paths, [3, 4], u)
    assert type(tables) is torch.Tensor and tables[0, 0, :4].tolist() == [0, 4, 8, 1]
    torch.testing.assert_close(transform(scan)(u), found)


def _read(x: torch.Tensor) -> torch.Tensor:
    """Sum of the tokens that each path reads, weighted by its step: depends on every entry of the tables."""
    tables = scan_tables(PATHS, [x.shape[0], x.shape[1]], x)[0]
    values = torch.where(tables >= 0, x.flatten()[tables.clamp(min=0)], 0.0)
    return (values * torch.arange(tables.shape[1], device=x.device)).sum(1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(_read, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for grid in ((4, 4), (3, 5), (6, 2)):
        x = torch.randn(grid)
        torch.testing.assert_close(compiled(x), _read(x))


def test_inference_mode_first_and_training_after():
    """Tables that were made in inference mode can be saved for a backward pass."""
    paths, grid = path_text(bidirectional(column())), [7, 3]

    def scan(u):
        one = torch.ones(1, 2, 21, 4)
        tables = scan_tables(paths, grid, u)
        return scan_tokens(u, one, -torch.ones(2, 4, 1), one[..., None, :1], one[..., None, :1], tables=tables)

    u = torch.randn(1, 1, 21, 4)
    with torch.inference_mode():
        expected = scan(u)
    u.requires_grad_()
    y = scan(u)
    y.sum().backward()
    assert torch.equal(y.detach(), expected) and u.grad.abs().sum() > 0


def test_compiled_in_inference_mode():
    torch._dynamo.reset()
    paths = path_text(cross())

    def scan(u):
        one = torch.ones(1, 4, 12, 4)
        tables = scan_tables(paths, [3, 4], u)
        return scan_tokens(u, one, -torch.ones(4, 4, 1), one[..., None, :1], one[..., None, :1], tables=tables)

    u = torch.randn(1, 1, 12, 4)
    with torch.inference_mode():
        compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")(u)
    assert torch.equal(compiled, scan(u))


@pytest.mark.parametrize("paths", [path_text([column()]), path_text([Window((2, 2))]), path_text([row(), column()])])
def test_a_path_that_does_not_fit(paths):
    with pytest.raises(ValueError):
        scan_tables(paths, [2, 2, 2], LIKE)


def test_a_grid_of_too_many_tokens():
    with pytest.raises(ValueError, match=r"expected fewer than 2\^31"):
        scan_tables(path_text([row()]), [2**16, 2**15], LIKE)
