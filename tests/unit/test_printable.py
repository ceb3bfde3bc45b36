"""What is shown in place of text that a terminal or a page cannot take."""

from __future__ import annotations

import pytest

from genworker.printable import in_a_line, printable, without_login


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("28x28x1, été, 服, e\u0301, \U0001f9e5, \xa0, \\x1b", "28x28x1, été, 服, e\u0301, \U0001f9e5, \xa0, \\x1b"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b2J\x7f\x00\r\t", "\\x9b2J\\x7f\\x00\\r\\t"),
        ("\u202egnp.exe\u2069", "\\u202egnp.exe\\u2069"),
        ("\ud83d \ufffe", "\\ud83d \\ufffe"),
    ],
)
def test_only_what_is_unfit_is_escaped(text: str, shown: str) -> None:
    """Letters of all languages stay."""
    assert printable(text) == in_a_line(text) == shown


def test_lines_stay_where_there_may_be_several() -> None:
    """Other ends of lines are escaped."""
    assert printable("a\n b\r\n\u2028c") == "a\n b\\r\n\\u2028c"
    assert in_a_line("a\nb") == "a\\nb"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pass@host/x", "http://host/x"),
        ("http://me@host/x", "http://host/x"),
        ("http://me:pa/ss@host/x", "http://host/x"),
        ("http://AKIA1:wJalr/XUtn/x+y=@host:5000/x", "http://host:5000/x"),
        ("at http://me:a@b@host and http://you:c/d@other/", "at http://host and http://other/"),
        ("http://host:5000/runs/a@b", "http://host:5000/runs/a@b"),
        ("http://host/runs/a@b", "http://host/runs/a@b"),
        ("mail me@host", "mail me@host"),
        ("http://[::1]:5000/runs/a@b", "http://[::1]:5000/runs/a@b"),
        ("file:///C:/Users/me@x", "file:///C:/Users/me@x"),
    ],
)
def test_no_login_is_shown(text: str, shown: str) -> None:
    """Secrets may have slashes, as those of AWS do; ports and paths are no secrets."""
    assert without_login(text) == shown
