"""What every command line of the package does alike: types of arguments, and how a command ends."""

from .arguments import Parser, location, nonempty, number, threads, whole
from .ending import CommandError, printable, run_command
from .paths import check_input, check_output, check_weights_file, make_folder

__all__ = [
    "CommandError",
    "Parser",
    "check_input",
    "check_output",
    "check_weights_file",
    "location",
    "make_folder",
    "nonempty",
    "number",
    "printable",
    "run_command",
    "threads",
    "whole",
]
