"""Pictures of scan paths (needs matplotlib)."""

import numpy as np

from .path import Grid, ScanPath

__all__ = ["plot"]


def plot(path: ScanPath, grid: Grid, ax=None):
    """Draw `path` on a 2D or 3D grid, from dark (first) to bright (last); returns the matplotlib axes."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install vision-ssm[cli]") from error
    if len(grid) not in (2, 3):
        raise ValueError(f"`grid` is {tuple(grid)}: expected two or three sizes")
    order = path.order(grid)
    points = np.stack(np.unravel_index(order[order >= 0], tuple(grid)), 1)[:, ::-1]  # x first
    if ax is None:
        _, ax = plt.subplots(subplot_kw={"projection": "3d"} if len(grid) == 3 else {}, figsize=(4, 4))
    colors = plt.cm.viridis(np.linspace(0, 0.95, max(len(points) - 1, 1)))
    for start, end, color in zip(points[:-1], points[1:], colors, strict=False):
        ax.plot(*zip(start, end, strict=True), color=color, linewidth=1.5)
    ax.scatter(*points[[0, -1]].T, c=["tab:green", "tab:red"], s=30, zorder=3)
    ax.set_title(str(path), fontsize=9)
    if len(grid) == 2:
        ax.set(xlim=(-0.5, grid[1] - 0.5), ylim=(grid[0] - 0.5, -0.5), aspect="equal")
        ax.set_xticks(range(grid[1]), [])
        ax.set_yticks(range(grid[0]), [])
        ax.grid(alpha=0.2)
    return ax
