"""Training data on an S3 server that goes away in the middle of a read: a run waits for it, and says so when it gives up."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genworker import sources
from genworker.errors import ObjectMissingError, SourceError, StoreError
from genworker.stores import open_store
from genworker.training import reader
from genworker.training.loader import Loader
from tests.proxies import Proxy
from tests.unit.test_sources_blocks import noisy_picture
from tests.unit.test_sources_webdataset import write_tar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genworker.sources.base import Source
    from tests.servers import S3Server

NUM_IMAGES = 300
KINDS = ["parquet", "webdataset", "image-folder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, each with its number as its label or class, as every kind of data."""
    folder = tmp_path_factory.mktemp("data")
    pictures = [noisy_picture(n) for n in range(NUM_IMAGES)]
    (folder / "parquet").mkdir()
    columns = {"image": pictures, "label": np.arange(NUM_IMAGES)}
    pq.write_table(pa.table(columns), folder / "parquet" / "train-0.parquet", row_group_size=10)
    files = [
        entry for n, picture in enumerate(pictures) for entry in ((f"{n:06}.png", picture), (f"{n:06}.cls", b"%d" % n))
    ]
    write_tar(folder / "webdataset" / "train-0.tar", files)
    for n, picture in enumerate(pictures):
        path = folder / "image-folder" / f"{n:06}" / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture)
    return folder


@pytest.fixture
def proxy(moto: S3Server, monkeypatch: pytest.MonkeyPatch, point_at: Any) -> Iterator[Proxy]:
    """The S3 server of this test; the SDK itself asks once, so that the retries are ours."""
    with Proxy(moto.endpoint) as proxy:
        point_at(moto)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(reader, "_FIRST_PAUSE_SECONDS", 0.05)
        yield proxy


@pytest.fixture(scope="module")
def buckets(moto: S3Server, folder: Path) -> dict[str, str]:
    """Where the data of each kind lies on the server."""
    bucket = moto.new_bucket()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            moto.client.put_object(Bucket=bucket, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
    return {name: f"s3://{bucket}/{name}" for name in KINDS}


def opened(name: str, url: str) -> Source:
    """A source with room for two blocks, so that reads go on for the whole epoch."""
    cache = {"cache_bytes": 2 * 12_000}
    cut = {"block_bytes": 12_000} if name == "webdataset" else {}
    values = {"url": url, "image_size": 32, "channels": 1} | cache | cut
    return sources.open_source(sources.get(name).Config.parse(values, origin="test"))


def draws(loader: Loader, until: int) -> list[int]:
    """The labels of all batches until so many images were seen."""
    found: list[int] = []
    while loader.images_seen < until:
        labels = next(loader).labels
        assert labels is not None
        found += labels.tolist()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_run_waits_for_a_server_that_comes_back(
    name: str, folder: Path, buckets: dict[str, str], proxy: Proxy
) -> None:
    """A server that dies inside a reply and is away for a second costs time, and not one image or its place."""
    with Loader(opened(name, str(folder / name)), batch_size=20, seed=2) as loader:
        expected = draws(loader, NUM_IMAGES)
    with Loader(opened(name, buckets[name]), batch_size=20, seed=2, prefetch=1, patience_seconds=60) as loader:
        found = draws(loader, 100)
        assert loader.retries == 0
        proxy.cut_after = 1000
        back = threading.Timer(1.0, proxy.start)
        back.start()
        found += draws(loader, NUM_IMAGES)
        back.join()
        assert loader.retries >= 1
        assert loader.wait_seconds >= 0.5
    assert found == expected
    assert sorted(found) == list(range(NUM_IMAGES))


@pytest.mark.parametrize("name", KINDS)
def test_a_run_gives_up_on_a_server_that_stays_away(name: str, buckets: dict[str, str], proxy: Proxy) -> None:
    """When patience ends, what was read before has been handed out, and the error says where and for how long it was asked."""
    with Loader(opened(name, buckets[name]), batch_size=20, seed=2, prefetch=1, patience_seconds=1) as loader:
        draws(loader, 100)
        proxy.stop()
        began = time.monotonic()
        with pytest.raises(
            SourceError, match=r"get '.*' in s3://.*; it was asked again for \d+ s, .*patience_seconds is 1"
        ):
            draws(loader, NUM_IMAGES)
        assert time.monotonic() - began < 20
        assert loader.images_seen >= 100


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_an_object_that_is_gone_is_not_asked_for_again(name: str, folder: Path, proxy: Proxy, moto: S3Server) -> None:
    """Data that was deleted in the middle of a run ends it at once, with the object's key."""
    store = open_store(f"s3://{moto.new_bucket()}/data")
    (shard,) = (folder / name).iterdir()
    store.put(shard.name, shard.read_bytes())
    with Loader(opened(name, store.url), batch_size=20, seed=2, prefetch=1, patience_seconds=600) as loader:
        draws(loader, 100)
        store.delete(shard.name)
        with pytest.raises(ObjectMissingError, match=f"{shard.name}.*: there is no such object"):
            draws(loader, NUM_IMAGES)
        assert loader.retries == 0


def test_a_source_on_a_server_that_is_away_is_refused_at_once(buckets: dict[str, str], proxy: Proxy) -> None:
    """Before training begins there is no patience: a wrong address should not cost two minutes."""
    proxy.stop()
    with pytest.raises(StoreError, match="check that the server runs and can be reached"):
        opened("parquet", buckets["parquet"])
