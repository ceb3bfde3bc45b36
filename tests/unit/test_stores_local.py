"""What is particular to objects in a folder: what a put leaves behind, who may read it, and what the disk can refuse."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from genworker.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    UsageError,
)
from genworker.stores.local import STALE_SECONDS, LocalStore


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


class StoreWithoutLinks(LocalStore):
    """A folder on a file system like FAT, which answers link() with an error."""

    def _link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))


def test_reading_creates_nothing(tmp_path: Path) -> None:
    """Opening, reading, listing and deleting at a wrong path leaves no folder there."""
    store = LocalStore(str(tmp_path / "wrong" / "path"))
    for read in (store.get, store.head):
        with pytest.raises(ObjectMissingError, match="nor is there such a folder"):
            read("key")
    assert list(store.list()) == []
    store.delete("key")
    assert list(tmp_path.iterdir()) == []


def test_puts_leave_only_the_object(tmp_path: Path) -> None:
    """Neither a put nor a refused put leaves a temporary file."""
    store = LocalStore(str(tmp_path))
    store.put("a/b", b"1")
    store.put("a/b", b"2", overwrite=True)
    with pytest.raises(ObjectExistsError):
        store.put("a/b", b"3")
    store.put("c", b"4")
    for key in ("c/below-an-object", "a"):
        for overwrite in (False, True):
            with pytest.raises(StoreError, match=key) as caught:
                store.put(key, b"5", overwrite=overwrite)
            assert type(caught.value) is StoreError
    assert files(tmp_path) == ["a/b", "c"]


def test_deleting_a_folder_of_objects_does_nothing(tmp_path: Path) -> None:
    """A key that is only the beginning of other keys is no object, so deleting it leaves those."""
    store = LocalStore(str(tmp_path))
    store.put("folder/object", b"x")
    store.delete("folder")
    store.delete("folder/object/below")
    assert store.get("folder/object") == b"x"


def test_objects_follow_the_umask(tmp_path: Path) -> None:
    """Others may read an object as far as the user's umask lets them, unlike a usual temporary file."""
    LocalStore(str(tmp_path)).put("key", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_unfinished_writes_are_hidden_and_swept(tmp_path: Path) -> None:
    """What a killed writer left is never listed, and is removed by a put or a deletion a day later, not before."""
    folder = tmp_path / ".genworker" / "tmp"
    folder.mkdir(parents=True)
    old, young = folder / "old", folder / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    past = time.time() - STALE_SECONDS - 60
    os.utime(old, (past, past))
    store = LocalStore(str(tmp_path))
    assert list(store.list()) == []
    assert list(store.list(".genworker/tmp/")) == []
    store.put("key", b"x")
    assert files(tmp_path) == [".genworker/tmp/young", "key"]
    # A finished dataset has no more puts; `gc` deletes.
    os.utime(young, (past, past))
    LocalStore(str(tmp_path)).delete("other")
    assert files(tmp_path) == ["key"]


def test_a_killed_writer_leaves_no_object(tmp_path: Path) -> None:
    """A process that is killed between write and link leaves nothing under the key."""
    program = """
import os, signal, sys
from genworker.stores.local import LocalStore
class Killed(LocalStore):
    def _link(self, source, target):
        if target.name == "key":
            os.kill(os.getpid(), signal.SIGKILL)
        super()._link(source, target)
Killed(sys.argv[1]).put("data/key", b"x" * 100_000)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    store = LocalStore(str(tmp_path))
    assert list(store.list()) == []
    store.put("data/key", b"whole")
    assert store.get("data/key") == b"whole"


def test_a_file_is_no_store(tmp_path: Path) -> None:
    """A root that is a file is named as such by every method but delete, which has nothing to do."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    store = LocalStore(str(path))
    for call in (
        lambda: store.put("key", b""),
        lambda: store.get("key"),
        lambda: store.head("key"),
        lambda: list(store.list()),
        lambda: store.conditional,
    ):
        with pytest.raises(StoreAccessError, match="this is a file"):
            call()
    store.delete("key")
    assert path.read_bytes() == b"x"


def test_without_hard_links_a_put_looks_first(tmp_path: Path) -> None:
    """Where link() fails the store says that it is not conditional, and still keeps what is there."""
    store = StoreWithoutLinks(str(tmp_path))
    assert store.conditional is False
    store.put("a/b", b"first")
    with pytest.raises(ObjectExistsError):
        store.put("a/b", b"second")
    assert store.get("a/b") == b"first"
    store.put("a/b", b"third", overwrite=True)
    assert store.get("a/b") == b"third"
    assert files(tmp_path) == ["a/b"]


def test_with_hard_links_a_store_is_conditional(tmp_path: Path) -> None:
    """The probe leaves no file."""
    assert LocalStore(str(tmp_path)).conditional is True
    assert files(tmp_path) == []


def test_linked_folders_are_followed_but_not_round(tmp_path: Path) -> None:
    """Listing shows what get can read through symbolic links, and does not run in circles."""
    (tmp_path / "elsewhere").mkdir()
    store = LocalStore(str(tmp_path / "store"))
    store.put("data/x", b"x")
    LocalStore(str(tmp_path / "elsewhere")).put("y", b"y")
    (tmp_path / "store" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "store" / "data" / "round").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "broken").symlink_to(tmp_path / "nowhere")
    assert [info.key for info in store.list()] == ["data/x", "linked/y"]
    assert store.get("linked/y") == b"y"


def test_only_regular_files_with_valid_names_are_listed(tmp_path: Path) -> None:
    """Pipes, and names that no key can spell, are none of the store's objects."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "back\\slash").write_bytes(b"")
    (tmp_path / "empty-folder").mkdir()
    Path(os.fsdecode(bytes(tmp_path) + b"/not-utf8-\xff")).write_bytes(b"")
    (tmp_path / "object").write_bytes(b"")
    assert [info.key for info in LocalStore(str(tmp_path)).list()] == ["object"]


def test_a_folder_without_permission_is_an_access_error(tmp_path: Path) -> None:
    """A folder that may not be written or read names the path to look at."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o000)
    program = """
import os, sys
from genworker.errors import StoreAccessError
from genworker.stores.local import LocalStore
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
store = LocalStore(sys.argv[1])
for call in (lambda: store.put("k", b""), lambda: store.get("k"), lambda: list(store.list()), lambda: store.delete("k")):
    try:
        call()
    except StoreAccessError as err:
        print(err)
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True)
    assert done.stdout.count("check owner and mode of") == 4


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """Without space a put fails as such, removes what it wrote, and works again once there is space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a small disk")
    try:
        store = LocalStore(str(disk))
        store.put("small", b"x" * 100_000)
        for overwrite in (False, True):
            with pytest.raises(StoreFullError, match="make space"):
                store.put("large", b"x" * 400_000, overwrite=overwrite)
        assert files(disk) == ["small"]
        store.delete("small")
        store.put("other", b"x" * 200_000)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_size_limit_is_a_full_store(tmp_path: Path) -> None:
    """What a file may not grow to, by ulimit or file system, is reported like a full disk and leaves nothing."""
    program = """
import resource, signal, sys
from genworker.errors import StoreFullError
from genworker.stores.local import LocalStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    LocalStore(sys.argv[1]).put("key", b"x" * 100_000)
except StoreFullError as err:
    print(err)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True)
    assert "make space" in done.stdout
    assert files(tmp_path) == []


def test_an_object_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then every folder that was made, then the folder with the new name: so a power cut loses nothing."""
    synced: list[str] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        really(descriptor)
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))

    store = LocalStore(str(tmp_path / "set"))
    assert store.conditional
    monkeypatch.setattr(os, "fsync", fsync)
    store.put("data/shard/a", b"1")
    content, *folders = synced
    assert content.startswith("set/.genworker/tmp/")
    assert folders == ["set", "set/data", "set/data/shard"]
    synced.clear()
    store.put("data/shard/b", b"2")
    assert synced[1:] == ["set/data/shard"]


def test_a_new_folder_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the store itself, and those above it."""
    synced: list[Path] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        really(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    LocalStore(str(tmp_path / "above" / "set")).put("a", b"1")
    assert {tmp_path, tmp_path / "above", tmp_path / "above" / "set"} <= set(synced)


class StoreThatLosesReplies(LocalStore):
    """A folder on a server that made the link, whose reply was lost, so that it was asked again."""

    def _link(self, source: Path, target: Path) -> None:
        super()._link(source, target)
        if target.parent.name != "tmp":
            super()._link(source, target)


def test_a_link_whose_reply_was_lost_is_a_put_that_succeeded(tmp_path: Path) -> None:
    """The file there is the very one that was to be linked."""
    store = StoreThatLosesReplies(str(tmp_path))
    assert store.put("key", b"1").size == 1
    with pytest.raises(ObjectExistsError):
        store.put("key", b"1")
    assert store.get("key") == b"1"


def test_a_put_survives_that_its_folder_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`genworker doctor` may remove folders, which it made too, between their making and the first file in them."""
    really, opens, made = os.open, [], []
    mkdir = Path.mkdir

    def make_late(path: Path, *args: Any, **kwargs: Any) -> None:
        made.append(path)
        if len(made) == 2:  # the folder that holds it, which is empty still
            path.parent.rmdir()
        mkdir(path, *args, **kwargs)

    def open_late(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_EXCL:
            opens.append(path)
            if len(opens) == 1:
                Path(path).parent.rmdir()
        return really(path, flags, mode)

    monkeypatch.setattr(os, "open", open_late)
    monkeypatch.setattr(Path, "mkdir", make_late)
    store = LocalStore(str(tmp_path / "set"))
    store.put("key", b"x", overwrite=True)
    assert len(opens) == 2
    assert len(made) > 3
    assert store.get("key") == b"x"


def test_a_path_of_an_unknown_user_is_refused() -> None:
    """What Python calls a RuntimeError."""
    with pytest.raises(UsageError, match=r"store URL '~no-such-user-here/x': .*home directory.* \./~"):
        LocalStore("~no-such-user-here/x")
