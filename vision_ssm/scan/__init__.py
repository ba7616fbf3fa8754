"""Scan paths: in which order a 2D or 3D grid is visited, and the token tables that the operators take."""

from .path import (
    Atrous,
    Axes,
    Hilbert,
    Middle,
    Restored,
    Reversed,
    ScanPath,
    Window,
    Zigzag,
    bidirectional,
    column,
    cross,
    parse,
    row,
)
from .tables import path_text, scan_tables
from .traced import fix_in_trace

__all__ = [
    "Atrous",
    "Axes",
    "Hilbert",
    "Middle",
    "Restored",
    "Reversed",
    "ScanPath",
    "Window",
    "Zigzag",
    "bidirectional",
    "column",
    "cross",
    "fix_in_trace",
    "parse",
    "path_text",
    "row",
    "scan_tables",
]
