"""URLs and keys: what opens which store, what lies below a URL, and which keys are none."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genworker.errors import UsageError
from genworker.stores import child_url, get, open_store
from genworker.stores.keys import check_key, is_key


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("/data/set", "/data/set"),
        ("/data//set/./", "/data/set"),
        ("file:///data/with%20space/", "/data/with space"),
        ("file://localhost/data", "/data"),
        ("/data/100%20", "/data/100%20"),
        ("relative/folder", str(Path.cwd() / "relative/folder")),
        ("~/folder", str(Path.home() / "folder")),
        ("memory://name", "memory://name"),
        ("memory://name/below/", "memory://name/below"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a b/c+d?e#f%20/", "s3://bucket/a b/c+d?e#f%20"),
    ],
)
def test_urls_are_normalised(url: str, normal: str) -> None:
    """A store's URL is absolute and without trailing slash, and opens the same store again."""
    assert open_store(url).url == normal
    assert open_store(normal).url == normal
    assert pickle.loads(pickle.dumps(open_store(url))).url == normal  # noqa: S301


@pytest.mark.parametrize(
    "url", ["", "s3://", "s3:///prefix", "s3://b", "s3://bucket/a/../b", "memory://", "file://host/a", "file:///a?b"]
)
def test_malformed_urls_are_refused(url: str) -> None:
    """A URL that cannot name a store says how to write one."""
    with pytest.raises(UsageError, match=r"write|give"):
        open_store(url)


def test_an_unknown_scheme_lists_the_known() -> None:
    """The error of an unknown scheme names all the stores there are."""
    for call in (lambda: open_store("gopher://bucket/x"), lambda: get("gopher")):
        with pytest.raises(UsageError, match=r"'gopher'.*file://, memory://, s3://"):
            call()


def test_credentials_in_a_url_are_refused_unseen() -> None:
    """Keys do not belong in URLs, which get logged; the message does not repeat them."""
    for url in ("s3://AKID:very-secret@bucket/prefix", "gopher://user:very-secret@host/x"):
        with pytest.raises(UsageError) as caught:
            open_store(url)
        assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "parts", "child"),
    [
        ("/data", ("bundle",), "/data/bundle"),
        ("/data/", ("a", "b/c"), "/data/a/b/c"),
        ("/", ("bundle",), "/bundle"),
        ("runs", ("7",), "runs/7"),
        (".", ("7",), "./7"),
        ("s3://bucket", ("bundle",), "s3://bucket/bundle"),
        ("s3://bucket/runs//", ("a b",), "s3://bucket/runs/a b"),
        ("memory://name", ("x",), "memory://name/x"),
        ("file:///data", ("a b",), "file:///data/a%20b"),
        ("s3://bucket/runs", (), "s3://bucket/runs"),
    ],
)
def test_child_urls(url: str, parts: tuple[str, ...], child: str) -> None:
    """Parts are added as keys, encoded only where the URL is."""
    assert child_url(url, *parts) == child


@pytest.mark.parametrize("part", ["/etc", "..", "", "a\\b"])
def test_child_urls_stay_below(part: str) -> None:
    """A part that leads out of the URL is refused."""
    with pytest.raises(UsageError, match="key"):
        child_url("s3://bucket/prefix", part)


@given(st.text(st.sampled_from("ab./\\ \u00fc\n~")) | st.text())
@example("a/../../b")
@example(".genworker/tmp/x")
def test_every_valid_key_is_one_file_below_the_root(key: str) -> None:
    """A key is refused, or it is already the shortest path of a file strictly below the store's folder."""
    if is_key(key):
        assert check_key(key) == key
        assert os.path.normpath(os.path.join("/root", key)) == f"/root/{key}"  # noqa: PTH118
        assert key.encode().decode() == key
    else:
        with pytest.raises(UsageError, match="relative path"):
            check_key(key)


@pytest.mark.parametrize("url", ["s3://AKIA1:sec/ret@bucket/x", "s3://AKIA1:secret@bucket/x", "s3://AKIA1@bucket"])
def test_credentials_in_a_url_are_not_shown(url: str) -> None:
    """They are refused; keys of AWS may have slashes."""
    with pytest.raises(UsageError, match="credentials do not belong in a URL") as caught:
        open_store(url)
    assert "AKIA1" not in str(caught.value)
    assert "ret@" not in str(caught.value)
    assert open_store("s3://bucket/me@host/x").url == "s3://bucket/me@host/x"
