"""Traces of `torch.jit.trace` refuse grids that their tables are not for, also after saving and freezing."""

import io

import pytest
import torch

from vision_ssm.layers import SS2D


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_is_for_one_grid() -> None:
    layer, file = SS2D(8).eval(), io.BytesIO()
    with torch.no_grad():
        trace = torch.jit.trace(layer, torch.randn(1, 4, 4, 8), check_trace=False)
        torch.jit.save(trace, file)
        file.seek(0)
        x = torch.randn(3, 4, 4, 8)
        for one in (trace, torch.jit.load(file), torch.jit.freeze(trace)):
            for _ in range(3):  # optimised after two calls
                assert torch.allclose(one(x), layer(x), atol=1e-6)
                with pytest.raises(
                    RuntimeError, match=r"for a grid of \[4, 4\], the input has \[2, 8\]: trace the model"
                ):
                    one(x.reshape(3, 2, 8, 8))
