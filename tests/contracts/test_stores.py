"""What every object store must do, on each of them; S3 is talked to over HTTP, at two servers of different makes."""

from __future__ import annotations

import hashlib
import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from genworker.errors import ObjectExistsError, ObjectMissingError, UsageError
from genworker.stores import STORES, child_url, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from genworker.stores import Store
    from tests.servers import S3Server

KINDS = ["file", "memory", "s3-moto", "s3-rclone"]
ODD_KEYS = [
    "plain.txt",
    "with space.txt",
    "plus+plus.txt",
    "umlaut-\u00fc-\u6f22.txt",
    "percent%20%2F.txt",
    "a&b=c?d#e.txt",
    "it's (ok)~!@$,;.txt",
    ".hidden/.file",
    "deep/er/and/deeper.txt",
]
INVALID_KEYS = ["", "/absolute", "../up", "a/../b", "a//b", "a/", "./a", "a\\b", "a\nb", "x" * 1025, "\ud800"]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, point_at: Callable[[S3Server], None]) -> str:
    """The URL of an empty store of each kind."""
    kind, _, server_name = request.param.partition("-")
    if kind == "file":
        return str(tmp_path / "store")
    if kind == "memory":
        return f"memory://{uuid.uuid4().hex}"
    server: S3Server = request.getfixturevalue(server_name)
    point_at(server)
    return f"s3://{server.new_bucket()}/some/prefix"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def keys(objects: Iterator[object]) -> list[str]:
    return [info.key for info in objects]  # type: ignore[attr-defined]


def test_every_registered_store_is_tested() -> None:
    """A scheme that is added to the registry has to be added to these tests."""
    assert {kind.partition("-")[0] for kind in KINDS} == set(STORES)


def test_put_then_get_returns_the_bytes(store: Store) -> None:
    """What was put comes back, and put, head and list agree on what it is."""
    data = bytes(range(256)) * 5000
    put = store.put("data/one.bin", data)
    assert store.get("data/one.bin") == data
    head = store.head("data/one.bin")
    (listed,) = store.list()
    for info in (put, head):
        assert (info.key, info.size, info.sha256) == ("data/one.bin", len(data), hashlib.sha256(data).hexdigest())
    assert (listed.key, listed.size) == ("data/one.bin", len(data))
    assert listed.sha256 in {None, head.sha256}
    assert abs(put.modified - head.modified) < 5
    assert abs(listed.modified - head.modified) < 5


def test_create_only_put_keeps_what_is_there(store: Store) -> None:
    """A second put of a key fails and leaves the first object as it was, even if the bytes are equal."""
    store.put("key", b"first")
    with pytest.raises(ObjectExistsError, match="key"):
        store.put("key", b"second")
    with pytest.raises(ObjectExistsError):
        store.put("key", b"first")
    assert store.get("key") == b"first"


def test_overwrite_replaces(store: Store) -> None:
    """With overwrite on, the last put wins, whether or not the key was taken."""
    store.put("key", b"first, and longer", overwrite=True)
    store.put("key", b"second", overwrite=True)
    assert store.get("key") == b"second"
    assert store.head("key").sha256 == hashlib.sha256(b"second").hexdigest()
    assert keys(store.list()) == ["key"]


def test_race_of_eight_has_one_winner(url: str) -> None:
    """Of eight writers with stores of their own, exactly one creates the object, and it holds that writer's bytes."""
    if not open_store(url).conditional:
        pytest.skip("this server ignores the condition; determinism is the fence there")
    start = threading.Barrier(8)
    stores = [open_store(url) for _ in range(8)]

    def write(number: int) -> bytes | None:
        data = bytes([number]) * 200_000
        assert stores[number].conditional
        start.wait()
        try:
            stores[number].put("contested", data)
        except ObjectExistsError:
            return None
        return data

    with ThreadPoolExecutor(8) as threads:
        winners = [data for data in threads.map(write, range(8)) if data is not None]
    assert len(winners) == 1
    assert open_store(url).get("contested") == winners[0]
    assert keys(open_store(url).list()) == ["contested"]


def test_readers_see_one_whole_object_while_writers_replace_it(url: str) -> None:
    """An object is one of those that were put, whole, at every moment; `head` and `get` never tell of half of one.

    The server that ignores conditions opens and reads a file in steps, and keeps its metadata apart: what it says meanwhile may
    be of two objects, or that there is none, so there only what lies there at the end is compared.
    """
    contents = [bytes([number]) * (200_000 + number) for number in range(4)]
    digests = {hashlib.sha256(data).hexdigest(): len(data) for data in contents}
    store = open_store(url)
    store.put("key", contents[0], overwrite=True)
    writing = threading.Event()

    def write(data: bytes) -> None:
        own = open_store(url)
        for _ in range(4):
            own.put("key", data, overwrite=True)

    def read() -> list[tuple[str | None, int]]:
        seen: list[tuple[str | None, int]] = []
        while not writing.is_set() or not seen:
            try:
                data, info = store.get("key"), store.head("key")
            except ObjectMissingError:
                assert not store.conditional
                continue
            seen.append((hashlib.sha256(data).hexdigest(), len(data)))
            seen.append((info.sha256, info.size))
        return seen

    with ThreadPoolExecutor(6) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        for writer in [threads.submit(write, data) for data in contents]:
            writer.result()
        writing.set()
        seen = [each for reader in readers for each in reader.result()]
    if store.conditional:
        assert set(seen) <= set(digests.items())
    assert store.get("key") in contents
    assert keys(store.list()) == ["key"]


def test_get_returns_ranges(store: Store) -> None:
    """Ranges follow slices: cut at the end, empty past it."""
    store.put("key", b"0123456789")
    assert store.get("key", start=3) == b"3456789"
    assert store.get("key", length=4) == b"0123"
    assert store.get("key", start=3, length=4) == b"3456"
    assert store.get("key", start=8, length=40) == b"89"
    assert store.get("key", start=10) == b""
    assert store.get("key", start=99, length=1) == b""
    assert store.get("key", start=2, length=0) == b""
    with pytest.raises(UsageError, match="negative"):
        store.get("key", start=-1)
    with pytest.raises(UsageError, match="negative"):
        store.get("key", length=-1)


def test_empty_objects_are_objects(store: Store) -> None:
    """An object of no bytes can be put, found, read whole and in ranges, and protects its key."""
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.get("empty", start=0, length=5) == b""
    assert store.head("empty").size == 0
    assert store.head("empty").sha256 == hashlib.sha256(b"").hexdigest()
    assert keys(store.list()) == ["empty"]
    with pytest.raises(ObjectExistsError):
        store.put("empty", b"x")


def test_missing_objects_are_reported(store: Store) -> None:
    """Reading a key that is not there names the key and the store, in an empty store and beside other objects."""
    for key in ("missing", "folder/missing", "there/is/no"):
        for read in (
            store.get,
            store.head,
            lambda key: store.get(key, start=1, length=2),
            lambda key: store.get(key, length=0),
        ):
            with pytest.raises(ObjectMissingError, match=key) as caught:
                read(key)
            assert store.url in str(caught.value)
        store.put(f"other-{key}", b"")


def test_a_folder_of_objects_is_no_object(store: Store) -> None:
    """A key that is only the beginning of other keys is missing."""
    store.put("folder/object", b"x")
    for read in (store.get, store.head):
        with pytest.raises(ObjectMissingError):
            read("folder")


def test_list_is_by_key_prefix_and_sorted(store: Store) -> None:
    """A prefix is any beginning of a key, not only a folder, and order is that of the whole keys."""
    names = ["a-b", "a/b", "a/c/d", "a/c-d", "a/c.d", "ab", "B", "\u00e9/x", "\u6f22"]
    for name in reversed(names):
        store.put(name, name.encode())
    assert keys(store.list()) == sorted(names)
    for prefix in ("a", "a/", "a/c", "a/c/", "a/c/d", "b", "B", "\u00e9", "a//", "/", "../", "nothing/at/all"):
        assert keys(store.list(prefix)) == sorted(name for name in names if name.startswith(prefix)), prefix
    assert [info.size for info in store.list()] == [len(name.encode()) for name in sorted(names)]


def test_an_empty_store_lists_nothing(store: Store) -> None:
    """Before the first put and after the last delete there is nothing, whatever a put needed on the way."""
    assert keys(store.list()) == []
    assert keys(store.list("data/")) == []
    store.put("data/x", b"x")
    store.delete("data/x")
    assert keys(store.list()) == []


def test_delete_is_idempotent(store: Store) -> None:
    """Deleting twice, or what was never there, is no error, and frees the key."""
    store.delete("never/there")
    store.put("key", b"old")
    store.put("key2", b"other")
    store.delete("key")
    store.delete("key")
    with pytest.raises(ObjectMissingError):
        store.get("key")
    store.put("key", b"new")
    assert store.get("key") == b"new"
    assert store.get("key2") == b"other"


def test_odd_keys_are_taken_as_they_are(store: Store) -> None:
    """Spaces, signs and letters beyond ASCII mean themselves in put, get, head, list and delete."""
    for key in ODD_KEYS:
        store.put(key, key.encode())
    assert keys(store.list()) == sorted(ODD_KEYS)
    for key in ODD_KEYS:
        assert store.get(key) == key.encode()
        assert store.get(key, start=1, length=2) == key.encode()[1:3]
        assert store.head(key).sha256 == hashlib.sha256(key.encode()).hexdigest()
        assert keys(store.list(key[:-1])) == [key]
        store.delete(key)
        assert keys(store.list(key)) == []


def test_invalid_keys_are_refused_everywhere(store: Store) -> None:
    """A key that one store could not hold, or that leaves the store, is refused by all, in every method."""
    for method in (lambda key: store.put(key, b""), store.get, store.head, store.delete):
        for key in INVALID_KEYS:
            with pytest.raises(UsageError, match="key "):
                method(key)


def test_names_of_unfinished_writes_are_reserved(store: Store) -> None:
    """No object can take a name among the temporary files, where no listing would show it."""
    for key in (".genworker/tmp/x", ".genworker/tmp"):
        with pytest.raises(UsageError, match="unfinished"):
            store.put(key, b"")
    store.put(".genworker/plan.json", b"{}")
    assert keys(store.list(".genworker/")) == [".genworker/plan.json"]


def test_pages_of_a_long_listing_join(store: Store) -> None:
    """More keys than fit in one reply of S3 (1,000) are listed once each, in order."""
    names = [f"many/{number:05d}" for number in range(1_005)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: store.put(name, b"x", overwrite=True), names))
    assert keys(store.list("many/")) == names
    assert keys(store.list("many/0099")) == names[990:1_000]


def test_stores_at_a_child_url_see_the_same_objects(store: Store) -> None:
    """A store opened below another one shows the objects there, under shorter keys, and no neighbours'."""
    child = open_store(child_url(store.url, "runs", "7"))
    child.put("bundle.json", b"{}")
    store.put("runs/77/x", b"")
    assert keys(child.list()) == ["bundle.json"]
    assert store.get("runs/7/bundle.json") == b"{}"
    assert child.url == f"{store.url}/runs/7"


def test_url_has_no_trailing_slash(url: str) -> None:
    """However the URL is written, the store's is the same."""
    assert open_store(f"{url}/").url == open_store(f"{url}//").url == url


def test_pickling_reopens_by_url(store: Store) -> None:
    """A pickled store, used or not, opens the same objects, and neither pickle nor repr tells a credential."""
    store.put("key", b"x")
    pickled = pickle.dumps(store)
    again = pickle.loads(pickled)  # noqa: S301
    assert again.url == store.url
    assert again.get("key") == b"x"
    assert type(again) is type(store)
    assert pickle.dumps(again) == pickled
    assert store.url in repr(store)


def test_many_threads_share_one_store(store: Store) -> None:
    """Writers of different keys through one store object do not disturb each other."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.put(f"t/{number}", b"%d" % number), range(40)))
        assert list(threads.map(lambda number: store.get(f"t/{number}"), range(40))) == [b"%d" % n for n in range(40)]
