r"""Text that strangers may have written, made fit to be shown: on a terminal, which obeys control characters, and on a page.

In: any text. Out: the same with an escape, such as ``\x1b``, in place of each character that would steer a terminal, change
the order of what stands around it, or has no place in UTF-8 or XML. Text is cleaned where it is shown; what is stored, compared
or written as JSON stays as it is.
"""

from __future__ import annotations

import re

_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029"
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they let text read otherwise than it is
_NO_CHARACTERS = "\ud800-\udfff\ufffe\uffff"
# Passwords can have slashes; what is a port before the first one is none.
_LOGIN = re.compile(r"(?<=[^/]//)([^\s/]*|[^\s/@:\[]+:(?!\d+/)[^\s@]*)@")
_UNFIT = re.compile(f"[{_CONTROLS}{_DIRECTIONS}{_NO_CHARACTERS}]")


def without_login(text: str) -> str:
    """``text`` without the ``user:password@`` of the addresses in it."""
    return _LOGIN.sub("", text)


def in_a_line(text: str) -> str:
    """``text`` as part of one line, which it cannot end."""
    return _UNFIT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(text: str) -> str:
    """``text`` with its lines."""
    return "\n".join(in_a_line(line) for line in text.split("\n"))
