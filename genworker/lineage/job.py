"""What lineage events say about a job: its name, the datasets that it reads and writes, and what is known of its run.

In: specs, manifests, bundles. Out: plain values, without any credential that a URL or a message may hold.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from genworker import bundle as bundles
from genworker.bulk.plan import SUCCESS_KEY
from genworker.bulk.progress import Progress
from genworker.bulk.records import Manifest, Success
from genworker.bulk.request import GenerateSpec
from genworker.errors import UsageError
from genworker.printable import without_login
from genworker.stores import Store, child_url
from genworker.training.record import BUNDLE_PREFIX
from genworker.training.spec import TrainSpec

OWN_NAMESPACE = "genworker"

_QUERY_OF_URL = re.compile(r"(://[^\s?#]*)[?#]\S*")
_QUERY_OF_PATH = re.compile(r"\?[^\s?=]+=\S*")
_FIELD_TYPES = {"label": "int64", "latents": "float32[]", "score": "float32"}


@dataclass(frozen=True)
class Dataset:
    """A dataset or a model, as events name it.

    Attributes:
        namespace: where it lies: ``s3://bucket``, ``file``, or ``genworker`` for data that ships with it.
        name: a key below that, or an absolute path.
        kind: FILE or MODEL.
        sub_type: the format of a dataset, the family of a model; may be empty.
        version: a digest of the content; empty until it is known.
        digests: all digests that are known, by name.
        statistics: rowCount, size in bytes and fileCount, as far as known.
        fields: names and types of its columns.
    """

    namespace: str
    name: str
    kind: str
    sub_type: str = ""
    version: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    statistics: Mapping[str, int] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """One try of a job. What is not known at the start is filled in while it runs.

    Attributes:
        command: generate or train.
        name: the same for every run of one schedule.
        input: what is read.
        output: what is written.
        run: what else is known of this try; JSON-ready.
        date: that a schedule asked for.
    """

    command: str
    name: str
    input: Dataset
    output: Dataset
    run: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date | None = None

    @property
    def namespace(self) -> str:
        """Of the job: OPENLINEAGE_NAMESPACE, or genworker."""
        return os.environ.get("OPENLINEAGE_NAMESPACE") or OWN_NAMESPACE

    @property
    def resume_id(self) -> str:
        """A UUID that all tries at one output share: the first, and those that go on from what it left."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.command} {self.output.namespace}/{self.output.name}"))


def generation(spec: GenerateSpec, name: str | None = None, date: datetime.date | None = None) -> Job:
    """A bulk job that begins; ``name`` is that of its spec, without one it is named by its URL."""
    output = _dataset_at(spec.out, "FILE", spec.format)
    return Job(
        "generate",
        f"generate.{name or _place_of(spec.out)}",
        _dataset_at(spec.bundle, "MODEL"),
        output,
        date=date,
    )


def on_progress(job: Job, progress: Progress) -> None:
    """Take how far a bulk job is."""
    job.run = {
        "planId": progress.plan_id,
        "samplesMade": progress.samples_made,
        "samplesDone": progress.samples_done,
        "numSamples": progress.num_samples,
        "shardsDone": progress.num_done,
        "numShards": progress.num_shards,
        "bytesDone": progress.bytes_done,
        "seconds": round(progress.making_seconds, 3),
    }


def on_published(job: Job, store: Store, manifest: Manifest, samples_made: int) -> None:
    """Take what a bulk job has published in ``store``, of which this run made ``samples_made`` samples."""
    manifest_sha256 = Success.read(store.get(SUCCESS_KEY)).manifest_sha256
    plan = manifest.plan
    job.input = replace(job.input, version=plan.bundle_digest, digests={"bundleDigest": plan.bundle_digest})
    job.output = replace(
        job.output,
        version=manifest_sha256,
        digests={"planId": manifest.plan_id, "manifestSha256": manifest_sha256, "bundleDigest": plan.bundle_digest},
        statistics={"rowCount": manifest.num_samples, "size": manifest.num_bytes, "fileCount": len(manifest.shards)},
        fields={"sample_index": "int64", "image": plan.codec} | {name: _FIELD_TYPES[name] for name in plan.columns},
    )
    job.run = {**job.run, "planId": manifest.plan_id, "samplesMade": samples_made}


def training(spec: TrainSpec, out: str, name: str | None = None) -> Job:
    """A training run that begins; ``name`` is that of its spec, without one it is named by its URL."""
    url = spec.data.url
    if url is None or url in spec.data.special_urls:
        source = Dataset(OWN_NAMESPACE, "/".join(filter(None, [spec.data.name, url])), "FILE", spec.data.name)
    else:
        source = _dataset_at(url, "FILE", spec.data.name)
    output = _dataset_at(child_url(out, BUNDLE_PREFIX.rstrip("/")), "MODEL", spec.family.name)
    return Job("train", f"train.{name or _place_of(out)}", source, output, run={"specId": spec.spec_id})


def on_trained(job: Job, store: Store) -> None:
    """Take the bundle that a training run in ``store`` ended with."""
    info = bundles.load_info(store, BUNDLE_PREFIX)
    source = info.lineage.source_digest
    job.input = replace(job.input, version=source, digests={"sourceDigest": source})
    size = info.weights_bytes + (info.scorer.num_bytes if info.scorer else 0)
    job.output = replace(
        job.output,
        version=info.digest,
        digests={"bundleDigest": info.digest, "weightsSha256": info.weights_sha256, "sourceDigest": source},
        statistics={"size": size},
    )
    job.run = {**job.run, "imagesSeen": info.lineage.images_seen}


def parent_of_environment() -> tuple[str, str, str] | None:
    """Namespace, job and run id of what started this job, from OPENLINEAGE_PARENT_ID; None where it is not set.

    Raises:
        UsageError: it is not written as ``namespace/job/run id``.
    """
    text = os.environ.get("OPENLINEAGE_PARENT_ID")
    if not text:
        return None
    namespace, _, rest = text.partition("/")
    name, _, run_id = rest.rpartition("/")
    with contextlib.suppress(ValueError):
        if namespace and name:
            return namespace, name, str(uuid.UUID(run_id))
    raise UsageError(f"OPENLINEAGE_PARENT_ID {text!r}: write it as namespace/job/run id, the last a UUID")


def without_secrets(text: str) -> str:
    """``text`` with users, passwords and queries taken out of the URLs in it."""
    return _QUERY_OF_PATH.sub("", _QUERY_OF_URL.sub(r"\1", without_login(text)))


def _place_of(url: str) -> str:
    """The URL or absolute path of ``url``, the same from whatever folder a command is run."""
    found = _dataset_at(url, "FILE")
    return found.name if found.namespace == "file" else f"{found.namespace}/{found.name}"


def _dataset_at(url: str, kind: str, sub_type: str = "") -> Dataset:
    """Named as OpenLineage's naming rules say: the bucket is the namespace, and the namespace of paths is ``file``."""
    scheme, separator, _ = url.partition("://")
    if not separator or "/" in scheme:
        return Dataset("file", str(Path(url).absolute()), kind, sub_type)
    place, _, key = without_secrets(url).partition("://")[2].partition("/")
    if scheme == "file":
        return Dataset("file", f"/{unquote(key)}".rstrip("/"), kind, sub_type)
    return Dataset(f"{scheme}://{place}", key.strip("/") or "/", kind, sub_type)
