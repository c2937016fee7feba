"""Names are data: what files call things is shown, never obeyed, by a terminal, a log or a browser."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return ``text`` with all that does not print replaced by escapes: ESC becomes ``\x1b``, a line feed ``\n``.

    Bytes of a path that are no UTF-8, which Python keeps as lone surrogates, become ``\xff`` and the like.
    """
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # surrogateescape
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
