"""What a user gave cannot be used: the base of the package's own errors, and how foreign text is shown in them."""

__all__ = ["InputError", "printable"]


class InputError(ValueError):
    """Bad input, told in one sentence that names the file, key or option; a command prints that sentence alone."""


def printable(text: object, longest: int = 2000) -> str:
    """Text on one line that changes no terminal: control characters and bytes that are no UTF-8 are escaped.

    Of text beyond `longest` characters the middle is left out.
    """
    shown = "".join(c if c.isprintable() else _escaped(c) for c in str(text))
    half = longest // 2
    return shown if len(shown) <= longest else f"{shown[:half]} ... {shown[-half:]}"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
