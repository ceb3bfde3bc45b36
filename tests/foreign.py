"""Everything in genworker that parses what a stranger may have written, each with sound inputs to begin from.

In: a parser's name. Out: sound inputs, and a function that reads one: it returns, or raises a GenworkerError. Checksums that
stand in front of a parser are made right again, so that what was changed reaches it.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import json
import struct
import tempfile
import uuid
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from genworker import bundle as bundles
from genworker import codecs, formats
from genworker.bulk import commit, ledger, schedule
from genworker.bulk.plan import CALIBRATION_KEY, MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, SUCCESS_KEY
from genworker.bulk.records import Success
from genworker.bundle import BUNDLE_KEY, SCORER_KEY, WEIGHTS_KEY
from genworker.cli import look
from genworker.config import load_spec
from genworker.errors import DatasetError, GenworkerError
from genworker.reading import open_dataset, verify
from genworker.reading.status import status
from genworker.sampling.calibration import Calibration, Trial
from genworker.sources import get as source
from genworker.stores import open_store
from genworker.training.spec import TrainSpec
from tests.fakes import dataset as fake
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genworker.stores.base import Store

_SHAPE = fake.SCHEMA
_PLAN = fake.make_plan(num_samples=20, samples_per_shard=10, columns=("label", "latents", "score"))

_OVERRIDES = (
    b"seed=3",
    b"evaluation.extractor_images=20000",
    b"training.batch_size=128",
    b"family.generator={block: plain, widths: [64, 32], blocks: [1, 1], patch: 2}",
)
_TEMPLATES = (
    b"s3://bucket/nightly/dt={{ date }}/{{ run_id }}",
    b"runs/{{ date.strftime('%Y%m%d') | int + 7 }}/{{ (date.year * 100 + date.month) % 12 }}",
    b"runs/{{ run_id | upper }}-{{ date.isocalendar()[1] }}-{{ 'a' ~ date.weekday() }}",
)


@dataclass(frozen=True)
class Parser:
    """Sound inputs, and what reads them: it returns, or raises a GenworkerError, and takes ``max_mib`` at most.

    Some 60 MiB are for what hypothesis keeps of ten thousand inputs.
    """

    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]
    max_mib: int = 150


@contextmanager
def _stored(objects: dict[str, bytes]) -> Iterator[Store]:
    store = open_store(f"memory://{uuid.uuid4().hex}")
    for key, data in objects.items():
        store.put(key, data)
    try:
        yield store
    finally:
        for info in list(store.list()):
            store.delete(info.key)


def _objects(url: str) -> dict[str, bytes]:
    store = open_store(url)
    return {info.key: store.get(info.key) for info in store.list()}


def _bundle_json(data: bytes) -> object:
    with _stored(_bundle_objects() | {BUNDLE_KEY: data}) as store:
        loaded = bundles.load(store, with_scorer=True)
        loaded.scorer()
        return loaded.generator()


@cache
def _bundle_objects() -> dict[str, bytes]:
    url = f"memory://{uuid.uuid4().hex}"
    models.bundle_of().save(open_store(url))
    return _objects(url)


def _weights(data: bytes) -> object:
    info = json.loads(_bundle_objects()[BUNDLE_KEY])
    info |= {"weights_sha256": hashlib.sha256(data).hexdigest(), "weights_bytes": max(1, len(data))}
    return _bundle_json_with({WEIGHTS_KEY: data, BUNDLE_KEY: json.dumps(info).encode()}).generator()


def _scorer(data: bytes) -> object:
    info = json.loads(_bundle_objects()[BUNDLE_KEY])
    info["scorer"] |= {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": max(1, len(data))}
    return _bundle_json_with({SCORER_KEY: data, BUNDLE_KEY: json.dumps(info).encode()}).scorer()


def _bundle_json_with(objects: dict[str, bytes]) -> bundles.Bundle:
    with _stored(_bundle_objects() | objects) as store:
        return bundles.load(store, with_scorer=True)


def _plan(data: bytes) -> object:
    with _stored({PLAN_KEY: data}) as store:
        plan = commit.read_plan(store)
        assert plan is not None
        plan.open_format()
        status(store)
        return [plan.provenance(task) for task in islice(plan.tasks(), 3)]


@cache
def _dataset_objects() -> dict[str, bytes]:
    url = f"memory://{uuid.uuid4().hex}"
    fake.publish(url, _PLAN)
    return _objects(url)


def _manifest(data: bytes) -> object:
    success = Success(plan_id=_PLAN.plan_id, manifest_sha256=hashlib.sha256(data).hexdigest())
    with _stored(_dataset_objects() | {MANIFEST_KEY: data, SUCCESS_KEY: success.canonical().encode()}) as store:
        verify(store.url)
        return [sample.index for sample in islice(open_dataset(store.url), 3)]


def _receipts(data: bytes) -> object:
    with _stored({RECEIPTS_PREFIX + "0.json": data}) as store:
        return ledger.read(store, _PLAN)


def _shard_parser(format: str) -> Parser:
    plan = fake.make_plan(num_samples=20, samples_per_shard=10, format=format, columns=_PLAN.columns)
    maker = plan.open_format()
    files: dict[str, bytes] = {}
    seeds = [fake.shard_bytes(plan, task, files.__setitem__) for task in plan.tasks()]

    def parse(data: bytes) -> object:
        reader = maker.reader(_with_crc(data) if format == "webdataset" else data, files.__getitem__)
        count = len(reader.sample_indices())
        return [
            list(reader.batches()),
            [reader.read_row(row) for row in {0, count // 2, count - 1} if 0 <= row < count],
        ]

    return Parser(tuple(seeds), parse)


def _with_crc(data: bytes) -> bytes:
    """A shard whose CRC-32 is right whatever was changed, where there is one to be found."""
    at = data[:2048].find(b'"crc32":"')
    end = 1024
    if at < 0 or len(data) < end:
        return data
    return data[: at + 9] + b"%08x" % zlib.crc32(data[end:]) + data[at + 17 :]


def _codec_parser(name: str) -> Parser:
    channels = [count for count in (1, 3, 4) if count in codecs.get(name).channels]
    pairs = []
    for count in channels:
        schema = _SHAPE.model_copy(update={"channels": count, "height": 17, "width": 11})
        made = codecs.make(name, schema)
        pairs.append((made, made.encode(fake.pixels_of(schema, np.arange(1))[0])))

    def parse(data: bytes) -> object:
        found = []
        for made, _ in pairs:
            try:
                found.append(made.decode(data))
            except GenworkerError:
                continue
        if not found:
            pairs[0][0].decode(data)
        return found

    return Parser(tuple(seed for _, seed in pairs), parse)


def _source_parser(name: str, file: str, seeds: list[bytes], **config: Any) -> Parser:
    def parse(data: bytes) -> object:
        with _stored({file: data}) as store:
            return _opened(name, url=store.url, **config)

    # A picture may have 2^26 pixels, which are 200 MB.
    return Parser(tuple(seeds), parse, max_mib=400)


def _idx_parser(part: str, end: str = "") -> Parser:
    whole = {
        "images-idx3": struct.pack(">IIII", 0x803, 12, 6, 5) + bytes(range(240)) + bytes(120),
        "labels-idx1": struct.pack(">II", 0x801, 12) + bytes(range(10)) + bytes(2),
    }
    files = {f"train-{name}-ubyte{end}": gzip.compress(data, mtime=0) if end else data for name, data in whole.items()}
    mine = f"train-{part}-ubyte{end}"

    def parse(data: bytes) -> object:
        made = source("idx")
        with _stored(files | {mine: data}) as store:
            opened = made(made.Config.parse({"name": "idx", "url": store.url}, origin="fuzz"))
            return opened.read(np.arange(min(len(opened), 10), dtype=np.int64))

    return Parser((files[mine],), parse)


def _pictures() -> list[bytes]:
    found = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        sink = io.BytesIO()
        Image.fromarray(fake.pixels_of(_SHAPE.model_copy(update={"height": 40, "width": 30}), np.arange(1))[0]).save(
            sink, kind
        )
        found.append(sink.getvalue())
    return found


def _spec(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_bytes(data)
        return load_spec(TrainSpec, str(path), (), {})


def _overrides(data: bytes) -> object:
    return load_spec(TrainSpec, "fashion-tiny", [data.decode("utf-8", "surrogateescape")], {})


def _template(data: bytes) -> object:
    values = ["bundle=b", "num_samples=1", "out=" + json.dumps(data.decode("utf-8", "replace"))]
    return schedule.load_run("nightly", values, date=datetime.date(2026, 11, 23), run_id="tuesday")


def _calibration(data: bytes) -> object:
    with _stored({CALIBRATION_KEY: data}) as store:
        facts = look._calibration_facts(store)
    if "damaged" in facts:  # which is how it refuses
        raise DatasetError(facts["damaged"])
    return facts


def _success(data: bytes) -> object:
    with _stored(_dataset_objects() | {SUCCESS_KEY: data}) as store:
        return len(open_dataset(store.url))


def _training_manifest(data: bytes) -> object:
    """What training reads of a dataset, which is not what readers read."""
    success = json.dumps({"manifest_sha256": hashlib.sha256(data).hexdigest()}).encode()
    with _stored(_dataset_objects() | {MANIFEST_KEY: data, SUCCESS_KEY: success}) as store:
        return _opened("parquet", url=store.url, image_size=8, channels=3)


def _tar_index() -> Parser:
    tar = fake.make_plan(num_samples=20, format="webdataset")
    files = {"a.tar": fake.shard_bytes(tar, tar.task(0))}

    def read(objects: dict[str, bytes]) -> bytes:
        with _stored(objects) as store:
            _opened("webdataset", url=store.url, image_size=8, channels=3, index=store.url + "/index.json")
            return store.get("index.json")

    return Parser((read(files),), lambda data: read(files | {"index.json": data}))


def _opened(name: str, **config: Any) -> object:
    """The first images of a source, and its digest."""
    made = source(name)
    opened = made(made.Config.parse({"name": name, "max_corrupt": 3, **config}, origin="fuzz"))
    return opened.read(np.arange(min(len(opened), 10), dtype=np.int64)), opened.digest()


@cache
def parsers() -> dict[str, Parser]:
    """All parsers of foreign input by name."""
    dataset = _dataset_objects()
    shard = fake.shard_bytes(fake.make_plan(num_samples=20), fake.make_plan(num_samples=20).task(0))
    tar = fake.make_plan(num_samples=20, format="webdataset")
    resized = {"image_size": 8, "channels": 3}
    receipts = next(data for key, data in dataset.items() if key.startswith(RECEIPTS_PREFIX))
    specs = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "jobs" / "specs").glob("fashion*.yaml"))]
    trials = [Trial(dtype="float32", memory_format="contiguous", upsampling="subpixel", launch="eager", micro_batch=64)]
    calibration = Calibration(numerics=_PLAN.numerics, seconds=1.5, trials=tuple(trials)).model_dump_json()
    return {
        "bundle.json": Parser((_bundle_objects()[BUNDLE_KEY],), _bundle_json),
        "bundle weights (safetensors)": Parser((_bundle_objects()[WEIGHTS_KEY],), _weights),
        "bundle scorer (safetensors)": Parser((_bundle_objects()[SCORER_KEY],), _scorer),
        "plan.json": Parser((dataset[PLAN_KEY],), _plan),
        "_manifest.json": Parser((dataset[MANIFEST_KEY],), _manifest),
        "_manifest.json, for training": Parser((dataset[MANIFEST_KEY],), _training_manifest),
        "_SUCCESS": Parser((dataset[SUCCESS_KEY],), _success),
        "receipts": Parser((receipts,), _receipts),
        "calibration.json": Parser((calibration.encode(),), _calibration),
        "training spec (YAML)": Parser(tuple(specs), _spec),
        "--set": Parser(_OVERRIDES, _overrides),
        "template": Parser(_TEMPLATES, _template),
        **{f"shard, {name}": _shard_parser(name) for name in formats.names()},
        **{f"image, {name}": _codec_parser(name) for name in codecs.names()},
        "source idx, images": _idx_parser("images-idx3"),
        "source idx, labels": _idx_parser("labels-idx1"),
        "source idx, images in gzip": _idx_parser("images-idx3", ".gz"),
        "source parquet": _source_parser("parquet", "a.parquet", [shard], **resized),
        "source webdataset": _source_parser("webdataset", "a.tar", [fake.shard_bytes(tar, tar.task(0))], **resized),
        "source webdataset, its index": _tar_index(),
        "source image-folder": _source_parser("image-folder", "a/b.png", _pictures(), **resized),
    }
