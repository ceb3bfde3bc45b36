"""Labels of tar shards are dropped only when that is asked for, whichever sample has one and whichever is first."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from genworker.errors import SourceError
from genworker.sources.webdataset import WebDatasetConfig, WebDatasetSource

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = (b"{nope", b"", b"\xff", b"[" * 200_000)


def shard(path: Path, *labels: tuple[str, bytes] | None) -> Path:
    """A tar file with an image for each label, whose name begins with that of the file."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 7).save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for n, label in enumerate(labels):
            for extension, content in [("png", buffer.getvalue()), *([label] if label else [])]:
                member = tarfile.TarInfo(f"{path.stem}{n}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def source(url: Path, **more: Any) -> WebDatasetSource:
    return WebDatasetSource(WebDatasetConfig(url=str(url), **{"image_size": 8, "channels": 1, **more}))


def labels(source_: WebDatasetSource) -> list[int] | None:
    found = source_.read(np.arange(len(source_))).labels
    return None if found is None else found.tolist()


@pytest.mark.parametrize("label", [("cls", b"1"), ("json", b'{"label": 1}')])
@pytest.mark.parametrize("without", [None, ("json", b'{"caption": "x"}'), ("json", b"[]"), ("txt", b"x")])
@pytest.mark.parametrize("one_shard", [True, False])
@pytest.mark.parametrize("labelled_first", [True, False])
def test_labels_that_some_samples_lack_are_refused(
    label: tuple[str, bytes],
    without: tuple[str, bytes] | None,
    one_shard: bool,
    labelled_first: bool,
    tmp_path: Path,
) -> None:
    """In one shard or in several, in either order; the way out is to train without labels."""
    order = (label, without) if labelled_first else (without, label)
    if one_shard:
        shard(tmp_path / "a.tar", *order)
    else:
        shard(tmp_path / "a.tar", order[0])
        shard(tmp_path / "b.tar", order[1])
    name = "a.tar: sample a1" if one_shard else "b.tar: sample b0"
    with pytest.raises(SourceError, match=rf"{name}: .* \(label_extension: none\)") as caught:
        source(tmp_path)
    if not labelled_first:
        assert f"has a label (.{label[0]}), which the first sample of all has not" in str(caught.value)
    assert labels(source(tmp_path, label_extension="none")) is None


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("place", [0, 1])
def test_json_that_cannot_be_read_is_not_taken_for_unlabelled(broken: bytes, place: int, tmp_path: Path) -> None:
    """Damaged data is named, with a message of a few words of it, unless no label is wanted."""
    files: list[tuple[str, bytes]] = [("json", b'{"caption": "x"}')] * 2
    files[place] = ("json", broken)
    shard(tmp_path / "a.tar", *files)
    with pytest.raises(
        SourceError, match=rf"a\.tar: sample a{place}: its JSON cannot be read, .*: repair it"
    ) as caught:
        source(tmp_path)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert labels(source(tmp_path, label_extension="none")) is None


def test_data_without_any_label_is_unlabelled(tmp_path: Path) -> None:
    """Captions in JSON that only some samples have are no labels."""
    shard(tmp_path / "a.tar", ("json", b'{"caption": "x"}'), None, ("json", b"7"), ("txt", b"label"))
    assert labels(source(tmp_path)) is None


@pytest.mark.parametrize("label", [None, ("cls", b"1"), ("txt", b"x")])
def test_a_named_label_key_is_never_dropped(label: tuple[str, bytes] | None, tmp_path: Path) -> None:
    """Who names what holds the label wants one, also where the first sample has no JSON."""
    shard(tmp_path / "a.tar", label, ("json", b'{"kind": 1}'))
    with pytest.raises(SourceError, match=r"a\.tar: sample a0: has no label \(a0\.json\), and all samples need one"):
        source(tmp_path, label_key="kind")


def test_an_index_made_without_looking_for_labels_is_not_trusted_for_them(tmp_path: Path) -> None:
    """An index of data whose labels were not wanted says nothing on whether there are any."""
    (tmp_path / "data").mkdir()
    shard(tmp_path / "data" / "a.tar", None, ("cls", b"1"))
    index = str(tmp_path / "index.json")
    assert labels(source(tmp_path / "data", index=index, label_extension="none")) is None
    with pytest.raises(SourceError, match="or with other settings; delete it"):
        source(tmp_path / "data", index=index)
