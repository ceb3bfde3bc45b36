"""Mutated inputs for everything that parses what a stranger may have written: each has to be read or refused, never a crash.

In: a parser's name, a number of inputs, a seed. Out: how many were read, how many refused with a GenworkerError, and what
else happened, which is a bug. Checksums that stand in front of a parser are made right again, so that mutations reach it.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import random
import struct
import tempfile
import uuid
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from genworker import bundle as bundles
from genworker import codecs, formats
from genworker.bulk import commit, ledger
from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, SUCCESS_KEY
from genworker.bulk.records import Success
from genworker.bundle import BUNDLE_KEY, SCORER_KEY, WEIGHTS_KEY
from genworker.config import load_spec
from genworker.errors import GenworkerError
from genworker.reading import open_dataset, verify
from genworker.reading.status import status
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
_ODD_NUMBERS = [
    0,
    1,
    -1,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    1e308,
    0.5,
    -0.0,
]
_ODD_VALUES: list[Any] = [
    *_ODD_NUMBERS,
    None,
    True,
    "",
    "x" * 300,
    "\ud800",
    "../../etc/passwd",
    [],
    {},
    [[]],
    {"a": {}},
]


@dataclass
class Tally:
    """What became of the inputs of one parser."""

    read: int = 0
    refused: int = 0
    crashes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Parser:
    """Sound inputs, and what reads them: it returns, or raises a GenworkerError."""

    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four small or large changes: bits, bytes, numbers, cuts, repeats, splices; JSON also by its structure."""
    if data[:1] in {b"{", b"["} and rng.random() < 0.7:
        return _mutated_json(data, rng)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice([1, 1, 2, 4, 8, 16, 64, 512, 4096]), len(changed) - at)
        kind = rng.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            changed[at : at + length] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * length
        elif kind == 3:
            number = int(rng.choice(_ODD_NUMBERS[:13])) % 2**64
            changed[at : at + 8] = struct.pack(rng.choice(["<Q", ">Q"]), number)
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = changed[at : at + length] * rng.choice([1, 2, 50])
        elif kind == 6:
            del changed[at:]
        else:
            start = rng.randrange(len(other) + 1)
            changed[at : at + length] = other[start : start + length]
    return bytes(changed)


def _mutated_json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        here, path = value, []
        while isinstance(here, dict | list) and here and (not path or rng.random() < 0.8):
            key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
            path.append((here, key))
            here = here[key]
        if not path:
            return b"[" * rng.choice([1, 1000, 100_000])
        parent, key = path[-1]
        kind = rng.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(["x", "name", "version", "", key + "_"])] = copy.deepcopy(rng.choice(_ODD_VALUES))
        elif kind == 2 and isinstance(parent[key], int | float):
            parent[key] = rng.choice([parent[key] + 1, parent[key] * 1000, -parent[key], *_ODD_NUMBERS])
        else:
            parent[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
    return json.dumps(value).encode()


def fuzz(name: str, num_inputs: int, seed: int = 0) -> Tally:
    """Give a parser ``num_inputs`` mutated inputs; what is neither read nor refused is counted by its kind."""
    parser, rng, tally = parsers()[name], random.Random(f"{name} {seed}"), Tally()
    for sound in parser.seeds:
        parser.parse(sound)
    for _ in range(num_inputs):
        data = mutated(rng.choice(parser.seeds), rng.choice(parser.seeds), rng)
        try:
            parser.parse(data)
        except GenworkerError:
            tally.refused += 1
        except Exception as err:
            tally.crashes[f"{type(err).__name__}: {str(err)[:150]}"] += 1
        else:
            tally.read += 1
    return tally


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
            made = source(name)
            opened = made(
                made.Config.parse({"name": name, "url": store.url, "max_corrupt": 3, **config}, origin="fuzz")
            )
            return opened.read(np.arange(min(len(opened), 10), dtype=np.int64)), opened.digest()

    return Parser(tuple(seeds), parse)


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


@cache
def parsers() -> dict[str, Parser]:
    """All parsers of foreign input by name."""
    dataset = _dataset_objects()
    shard = fake.shard_bytes(fake.make_plan(num_samples=20), fake.make_plan(num_samples=20).task(0))
    tar = fake.make_plan(num_samples=20, format="webdataset")
    resized = {"image_size": 8, "channels": 3}
    receipts = next(data for key, data in dataset.items() if key.startswith(RECEIPTS_PREFIX))
    specs = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "jobs" / "specs").glob("fashion*.yaml"))]
    return {
        "bundle.json": Parser((_bundle_objects()[BUNDLE_KEY],), _bundle_json),
        "bundle weights (safetensors)": Parser((_bundle_objects()[WEIGHTS_KEY],), _weights),
        "bundle scorer (safetensors)": Parser((_bundle_objects()[SCORER_KEY],), _scorer),
        "plan.json": Parser((dataset[PLAN_KEY],), _plan),
        "_manifest.json": Parser((dataset[MANIFEST_KEY],), _manifest),
        "receipts": Parser((receipts,), _receipts),
        "training spec (YAML)": Parser(tuple(specs), _spec),
        **{f"shard, {name}": _shard_parser(name) for name in formats.names()},
        **{f"image, {name}": _codec_parser(name) for name in codecs.names()},
        "source idx, images": _idx_parser("images-idx3"),
        "source idx, labels": _idx_parser("labels-idx1"),
        "source idx, images in gzip": _idx_parser("images-idx3", ".gz"),
        "source parquet": _source_parser("parquet", "a.parquet", [shard], **resized),
        "source webdataset": _source_parser("webdataset", "a.tar", [fake.shard_bytes(tar, tar.task(0))], **resized),
        "source image-folder": _source_parser("image-folder", "a/b.png", _pictures(), **resized),
    }
