"""What a user gave cannot be used: the base of the package's own errors."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input, told in one sentence that names the file, key or option; a command prints that sentence alone."""
