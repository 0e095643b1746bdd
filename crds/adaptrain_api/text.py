"""Text that comes from workers and coordinators, made safe for a terminal."""

import re

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system commands, such as a window's title
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]"  # control sequences, such as colours and cursor movements
)
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all control characters but tab and newline
    r"\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"  # what is invisible, or changes the direction of text
)


def printable(text: str) -> str:
    """The text without escape sequences and control characters; a carriage return ends a line.

    A terminal acts on them (ECMA-48): a worker's last words could clear the screen and write a status of their own.

    >>> printable("\\x1b[31mred\\x1b[0m\\r\\nplain")
    'red\\nplain'
    """
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
