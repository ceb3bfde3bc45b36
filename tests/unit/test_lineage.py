"""Lineage events: what they say of real jobs, that their server cannot harm a job, and that they hold no secret."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import torch
import yaml
from click.testing import CliRunner
from openlineage.client import facet_v2

from genworker import __version__
from genworker import bundle as bundles
from genworker.bulk.manifest import published
from genworker.bulk.plan import MANIFEST_KEY
from genworker.bulk.progress import Reporter
from genworker.bulk.protocol import Driver
from genworker.bulk.request import GenerateSpec, make_plan, numerics_for, sample_schema
from genworker.bulk.shard import ShardMaker
from genworker.cli import cli
from genworker.errors import JobError, UsageError
from genworker.lineage import job as jobs
from genworker.lineage import sender
from genworker.stores import open_store
from genworker.training import hooks, loop, record
from tests.fakes import models
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genworker.bulk.plan import Task
    from genworker.bulk.records import Manifest, Receipt

CPU = torch.device("cpu")
KEY = "key-canary-0123456789"
DIGEST = r"^[0-9a-f]{64}$"
# What the specification of OpenLineage 2-0-2 requires of a run event, and of every facet.
_URI = {"type": "string", "pattern": r"^[a-z][a-z0-9+.-]*:\S+$"}
_FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {"_producer": {"const": f"pkg:pypi/genworker@{__version__}"}, "_schemaURL": _URI},
    },
}
_NAMED = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {
        "namespace": {"type": "string", "minLength": 1},
        "name": {"type": "string", "minLength": 1},
        "facets": _FACETS,
        "inputFacets": _FACETS,
        "outputFacets": _FACETS,
    },
    "additionalProperties": False,
}
_RUN_EVENT = {
    "type": "object",
    "required": ["eventType", "eventTime", "producer", "schemaURL", "run", "job", "inputs", "outputs"],
    "properties": {
        "eventType": {"enum": ["START", "COMPLETE", "FAIL", "ABORT"]},
        "eventTime": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$"},
        "producer": _URI,
        "schemaURL": _URI,
        "run": {
            "type": "object",
            "required": ["runId", "facets"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": _FACETS},
            "additionalProperties": False,
        },
        "job": _NAMED,
        "inputs": {"type": "array", "items": _NAMED, "minItems": 1},
        "outputs": {"type": "array", "items": _NAMED, "minItems": 1},
    },
    "additionalProperties": False,
}
# The client's own classes of the standard facets in use: they refuse a key that the standard does not know.
_STANDARD: dict[str, Callable[..., Any]] = {
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "nominalTime": facet_v2.nominal_time_run.NominalTimeRunFacet,
    "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet,
    "parent": facet_v2.parent_run.ParentRunFacet,
    "tags": facet_v2.tags_run.TagsRunFacet,
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
    "datasetType": facet_v2.dataset_type_dataset.DatasetTypeDatasetFacet,
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
    "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
}


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing asks for events but what a test does; the client's own additions to the environment go again."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("OPENLINEAGE"):
            del os.environ[name]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


class Server:
    """A lineage server that keeps what it is sent and answers with ``status``, or never where that is 0."""

    def __init__(self, status: int = 201) -> None:
        self.received: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        server, self.ended = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that http.server calls
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.received.append((self.path, dict(self.headers), json.loads(body)))
                if not status:
                    server.ended.wait()
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                """Nothing is printed."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._http.server_address[1]}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for _, _, event in self.received]


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


def events_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check(event: dict[str, Any]) -> None:
    """What the specification requires, and standard facets as the client knows them."""
    jsonschema.Draft202012Validator(_RUN_EVENT, format_checker=jsonschema.FormatChecker()).validate(event)
    holders = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
    for holder in holders:
        for kind in ("facets", "outputFacets"):
            for name, facet in holder.get(kind, {}).items():
                if not name.startswith("genworker_"):
                    _STANDARD[name](**{key: value for key, value in facet.items() if not key.startswith("_")})


def check_pair(events: list[dict[str, Any]], last: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """START and ``last`` of one run of one job over the same datasets; returns the two."""
    assert [event["eventType"] for event in events] == ["START", last]
    start, end = events
    for event in events:
        check(event)
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start["eventTime"] < end["eventTime"]
    for key in ("namespace", "name"):
        assert start["job"][key] == end["job"][key]
        for side in ("inputs", "outputs"):
            assert [item[key] for item in start[side]] == [item[key] for item in end[side]]
    return start, end


def spec_of(tiny_bundle: str, out: object) -> GenerateSpec:
    return GenerateSpec(bundle=tiny_bundle, out=str(out), num_samples=50, samples_per_shard=10, seed=4)


def run_job(
    spec: GenerateSpec,
    target: str | None,
    told: list[str] | None = None,
    before_shard: Callable[[int], object] = lambda _index: None,
    **about: Any,
) -> Manifest:
    """A bulk job as the command line runs it, on one thread in place of a cluster."""
    store, bundle = open_store(spec.out), bundles.load(open_store(spec.bundle))
    plan = make_plan(spec, bundle.info, numerics_for(spec, sample_schema(bundle.info), CPU))
    job = jobs.generation(spec, **about)
    reporter = Reporter(lambda progress: jobs.on_progress(job, progress))

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        maker = ShardMaker(store, CPU)
        for task in tasks:
            before_shard(task.shard_index)
            yield maker.make(task, 0)

    driver = Driver(
        store, plan, bundle, make, on_recalled=lambda there: reporter.begin(plan, there), on_made=reporter.made
    )
    return sender.follow(
        job,
        target,
        (told if told is not None else []).append,
        driver.run,
        lambda manifest: jobs.on_published(job, store, manifest, reporter.samples_made),
    )


def test_a_bulk_job_is_told_from_bundle_to_dataset(tiny_bundle: str, tmp_path: Path) -> None:
    """START and COMPLETE name bundle and dataset; COMPLETE has their digests, rows, bytes, files and columns."""
    path, out = tmp_path / "events.jsonl", tmp_path / "set"
    manifest = run_job(spec_of(tiny_bundle, out), str(path), name="nightly", date=datetime.date(2026, 11, 23))
    start, end = check_pair(events_in(path), "COMPLETE")
    assert (end["job"]["namespace"], end["job"]["name"]) == ("genworker", "generate.nightly")
    (model,), (dataset,) = end["inputs"], end["outputs"]
    assert (model["namespace"], model["name"]) == ("file", tiny_bundle)
    assert (dataset["namespace"], dataset["name"]) == ("file", str(out))
    assert model["facets"]["version"]["datasetVersion"] == manifest.plan.bundle_digest
    sha256 = hashlib.sha256((out / MANIFEST_KEY).read_bytes()).hexdigest()
    assert dataset["facets"]["version"]["datasetVersion"] == sha256
    digests = dataset["facets"]["genworker_digests"]
    assert (digests["planId"], digests["manifestSha256"]) == (manifest.plan_id, sha256)
    assert (
        digests["bundleDigest"] == model["facets"]["genworker_digests"]["bundleDigest"] == manifest.plan.bundle_digest
    )
    written = dataset["outputFacets"]["outputStatistics"]
    assert (written["rowCount"], written["size"], written["fileCount"]) == (50, manifest.num_bytes, 5)
    assert [field["name"] for field in dataset["facets"]["schema"]["fields"]] == ["sample_index", "image", "label"]
    facets = end["run"]["facets"]
    assert (facets["genworker_run"]["planId"], facets["genworker_run"]["samplesMade"]) == (manifest.plan_id, 50)
    assert facets["genworker_run"]["versions"]["genworker"] == __version__
    assert facets["processing_engine"]["name"] == "ray"
    assert facets["nominalTime"]["nominalStartTime"] == "2026-11-23T00:00:00+00:00"
    assert "outputStatistics" not in start["outputs"][0].get("outputFacets", {})


def test_a_stopped_job_aborts_and_its_next_try_can_be_found(tiny_bundle: str, tmp_path: Path) -> None:
    """ABORT says how far it came; the try that goes on is a run of its own with the same job name and resume id."""
    path, spec = tmp_path / "events.jsonl", spec_of(tiny_bundle, tmp_path / "set")
    # A shell that starts this in the background has SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_job(spec, str(path), before_shard=lambda index: index == 2 and signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, inherited)
    run_job(spec, str(path))
    events = events_in(path)
    first, second = check_pair(events[:2], "ABORT"), check_pair(events[2:], "COMPLETE")
    stopped, finished = first[1]["run"]["facets"]["genworker_run"], second[1]["run"]["facets"]["genworker_run"]
    assert (stopped["samplesDone"], stopped["numSamples"], stopped["shardsDone"]) == (20, 50, 2)
    assert finished["samplesMade"] == 30
    assert stopped["planId"] == finished["planId"]
    assert first[0]["run"]["runId"] != second[0]["run"]["runId"]
    assert len({event["run"]["facets"]["genworker_run"]["resumeId"] for event in events}) == 1
    assert len({event["job"]["name"] for event in events}) == 1
    assert "outputStatistics" not in first[1]["outputs"][0].get("outputFacets", {})


def test_a_failure_is_told_with_its_message_and_without_passwords(tiny_bundle: str, tmp_path: Path) -> None:
    """FAIL holds the error's class and message; users, passwords and queries of URLs in it are gone."""
    path = tmp_path / "events.jsonl"

    def fail(_index: int) -> None:
        raise JobError(f"shard 0: https://anna:{KEY}@host/data?sig={KEY} said 500; also /api/lineage?code={KEY}")

    with pytest.raises(JobError):
        run_job(spec_of(tiny_bundle, tmp_path / "set"), str(path), before_shard=fail)
    _, end = check_pair(events_in(path), "FAIL")
    error = end["run"]["facets"]["errorMessage"]
    assert error["message"] == "JobError: shard 0: https://host/data said 500; also /api/lineage"
    assert error["programmingLanguage"] == "python"
    assert KEY not in path.read_text(encoding="utf-8")


def test_a_training_run_is_told_from_source_to_bundle(tmp_path: Path) -> None:
    """COMPLETE names the source with its digest and the bundle with its own; generation from it names the same bundle."""
    path, out = tmp_path / "events.jsonl", str(tmp_path / "run")
    source = models.shipped_source(16)
    spec = models.train_spec(images=16)
    store, job = open_store(out), jobs.training(spec, out, "tiny")

    def work() -> None:
        loop.train(spec, source, store, rank=0, world_size=1, device=CPU, hooks=hooks.Hooks())

    sender.follow(job, str(path), pytest.fail, work, lambda _: jobs.on_trained(job, store))
    _, end = check_pair(events_in(path), "COMPLETE")
    info = bundles.load_info(store, "bundle/")
    (data,), (model,) = end["inputs"], end["outputs"]
    assert end["job"]["name"] == "train.tiny"
    assert (data["namespace"], data["name"]) == ("genworker", "fashion-mnist/shipped")
    assert data["facets"]["version"]["datasetVersion"] == info.lineage.source_digest == source.digest()
    assert model["facets"]["version"]["datasetVersion"] == info.digest
    assert model["outputFacets"]["outputStatistics"]["size"] >= info.weights_bytes
    run = end["run"]["facets"]["genworker_run"]
    assert (run["specId"], run["imagesSeen"]) == (spec.spec_id, 16)
    made = jobs.generation(spec_of(f"{out}/bundle", tmp_path / "set")).input
    assert (made.namespace, made.name) == (model["namespace"], model["name"])


def test_a_server_gets_the_events_with_its_key(
    server: Server, tiny_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own variables are enough, or the URL by hand; the key travels in the header alone."""
    monkeypatch.setenv("OPENLINEAGE_API_KEY", KEY)
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "images")
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", "airflow/dag.task/01890a5d-ac96-774b-bcce-b302099a8057")
    told: list[str] = []
    run_job(spec_of(tiny_bundle, tmp_path / "one"), server.url, told)
    monkeypatch.setenv("OPENLINEAGE_URL", server.url)
    run_job(spec_of(tiny_bundle, tmp_path / "two"), None, told)
    assert told == []
    assert len(server.received) == 4
    for path, headers, event in server.received:
        assert (path, headers["Authorization"]) == ("/api/v1/lineage", f"Bearer {KEY}")
        assert KEY not in json.dumps(event)
        assert event["job"]["namespace"] == "images"
        parent = event["run"]["facets"]["parent"]
        assert parent["job"] == {"namespace": "airflow", "name": "dag.task"}
        assert parent["run"] == {"runId": "01890a5d-ac96-774b-bcce-b302099a8057"}
    check_pair(server.events[:2], "COMPLETE")
    check_pair(server.events[2:], "COMPLETE")


def test_the_clients_configuration_file_is_enough(tiny_bundle: str, tmp_path: Path) -> None:
    """An openlineage.yml where the client looks for one turns events on; OPENLINEAGE_DISABLED turns them off again."""
    path, told = tmp_path / "events.jsonl", list[str]()
    config = f"transport:\n  type: file\n  log_file_path: {path}\n  append: true\n"
    (tmp_path / "openlineage.yml").write_text(config, encoding="utf-8")
    run_job(spec_of(tiny_bundle, tmp_path / "one"), None, told)
    check_pair(events_in(path), "COMPLETE")
    os.environ["OPENLINEAGE_DISABLED"] = "true"
    run_job(spec_of(tiny_bundle, tmp_path / "two"), None, told)
    assert told == []
    run_job(spec_of(tiny_bundle, tmp_path / "three"), str(path), told)
    assert len(events_in(path)) == 2
    assert told == ["lineage: OPENLINEAGE_DISABLED is true, so --lineage sends no events"]


def test_without_being_asked_nothing_is_sent_and_no_client_is_loaded(tiny_bundle: str, tmp_path: Path) -> None:
    before = threading.enumerate()
    run_job(spec_of(tiny_bundle, tmp_path / "one"), None, told := [])
    assert told == []
    assert not [thread for thread in threading.enumerate() if thread.name == "lineage" and thread not in before]


def test_the_commands_send_them(tiny_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """generate, backfill and train name the job by their spec, and say which date it is for; warnings are lines of the log."""
    nightly, tiny, path = tmp_path / "nightly.yaml", tmp_path / "tiny.yaml", tmp_path / "events.jsonl"
    values = spec_of(tiny_bundle, f"{tmp_path}/dt={{{{ date }}}}").model_dump(mode="json")
    nightly.write_text(yaml.safe_dump(values), encoding="utf-8")
    run_job(spec_of(tiny_bundle, tmp_path / "dt=2026-11-23"), None)
    spec = models.train_spec(images=16)
    tiny.write_text(yaml.safe_dump(spec.model_dump(mode="json")), encoding="utf-8")
    store = open_store(str(tmp_path / "run"))
    record.claim(spec, store)
    loop.train(spec, models.shipped_source(16), store, rank=0, world_size=1, device=CPU, hooks=hooks.Hooks())

    def command(*args: object, code: int = 0) -> str:
        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        assert result.exit_code == code, result.output
        return result.stderr

    dates = ("--from", "2026-11-23", "--to", "2026-11-24")
    command("generate", "--spec", nightly, "--date", "2026-11-23", "--lineage", path)
    command("backfill", nightly, *dates, "--set", "bundle=nowhere", "--lineage", path, code=1)
    command("train", tiny, "--out", tmp_path / "run", "--lineage", path)
    events = events_in(path)
    found, missing, trained = check_pair(events[:2], "COMPLETE"), check_pair(events[2:4], "FAIL"), events[4:]
    check_pair(trained, "COMPLETE")
    assert [event["job"]["name"] for event in events[::2]] == ["generate.nightly", "generate.nightly", "train.tiny"]
    times = [end["run"]["facets"]["nominalTime"]["nominalStartTime"][:10] for _, end in (found, missing)]
    assert times == ["2026-11-23", "2026-11-24"]
    assert found[1]["run"]["facets"]["genworker_run"]["samplesMade"] == 0
    assert found[1]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 50
    assert missing[1]["run"]["facets"]["errorMessage"]["message"].startswith("BundleError: ")

    monkeypatch.setattr(sender, "CLOSE_SECONDS", 0.3)
    target = f"http://127.0.0.1:{free_port()}"
    shown = command("generate", "--spec", nightly, "--date", "2026-11-23", "--lineage", target)
    (line,) = [json.loads(text) for text in shown.splitlines()]
    assert (line["event"], line["message"][:9]) == ("warning", "lineage: ")


@pytest.mark.parametrize("trouble", ["nobody", "silent", "refusing", "folder is gone"])
def test_a_lineage_server_cannot_harm_a_job(
    tiny_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], trouble: str
) -> None:
    """The job publishes, waits no longer than it says, and tells of lost events in one line without the URL's password."""
    monkeypatch.setattr(sender, "CLOSE_SECONDS", 0.3)
    with closing(Server({"silent": 0, "refusing": 403}.get(trouble, 201))) as server:
        address = server.address if trouble != "nobody" else f"127.0.0.1:{free_port()}"
        target, told = f"http://anna:{KEY}@{address}", list[str]()
        if trouble == "folder is gone":
            (tmp_path / "gone").mkdir()
            target = str(tmp_path / "gone" / "events.jsonl")
        started = time.monotonic()
        manifest = run_job(
            spec_of(tiny_bundle, tmp_path / "set"),
            target,
            told,
            lambda index: index == 0 and trouble == "folder is gone" and Path(target).parent.rename(tmp_path / "moved"),
        )
        seconds = time.monotonic() - started
    assert published(open_store(str(tmp_path / "set"))) == manifest
    assert seconds < 10
    (line,) = told
    assert line.startswith("lineage: ")
    assert "events of this run may be missing" in line
    shown = capfd.readouterr()
    assert KEY not in line + shown.out + shown.err
    assert shown.err == ""


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("kafka://broker/topic", "give the http"),
        ("no-such-folder/events.jsonl", "in a folder that is there"),
        (".", "give the http"),
        (f"https://anna:{KEY}@", "cannot be used"),
        (f"ftp://anna:{KEY}@host/x?{KEY}", "give the http"),
    ],
)
def test_a_wrong_target_ends_before_the_job(target: str, message: str) -> None:
    """A usage error that names the flag, what was seen without its password, and what to give."""
    with pytest.raises(UsageError, match="--lineage") as caught:
        sender.follow(job_of(), target, pytest.fail, lambda: pytest.fail("began"), lambda _: None)
    assert message in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OPENLINEAGE_CONFIG", "/no/such/openlineage.yml", "says of no server or file"),
        ("OPENLINEAGE_URL", f"//anna:{KEY}@host", "cannot be used"),
        ("OPENLINEAGE__TRANSPORT__TYPE", "carrier-pigeon", "cannot be used"),
    ],
)
def test_a_wrong_environment_is_told_and_the_job_goes_on(
    capfd: pytest.CaptureFixture[str], name: str, value: str, message: str
) -> None:
    """It may be set for other programs, so it is no error here; one line names the variable."""
    os.environ[name] = value
    told: list[str] = []
    assert sender.follow(job_of(), None, told.append, lambda: "done", lambda _: None) == "done"
    (line,) = told
    assert line.startswith(f"lineage: {name}: ")
    assert message in line
    assert KEY not in line
    assert capfd.readouterr() == ("", "")


def test_a_parent_that_is_none_is_told(tmp_path: Path) -> None:
    os.environ["OPENLINEAGE_PARENT_ID"] = "airflow/dag.task/yesterday"
    with pytest.raises(UsageError, match=r"OPENLINEAGE_PARENT_ID 'airflow/dag\.task/yesterday'"):
        sender.follow(job_of(), str(tmp_path / "events"), pytest.fail, lambda: None, lambda _: None)


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by flag it is an error; by the environment, which other programs share, a line."""
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    with pytest.raises(UsageError, match=r"pip install 'genworker\[lineage\]'"):
        sender.follow(job_of(), "events.jsonl", pytest.fail, lambda: pytest.fail("began"), lambda _: None)
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    told: list[str] = []
    assert sender.follow(job_of(), None, told.append, lambda: 7, lambda _: None) == 7
    assert len(told) == 1
    assert "pip install 'genworker[lineage]'" in told[0]


def test_what_cannot_be_learned_is_told_and_complete_is_sent_all_the_same(tmp_path: Path) -> None:
    """A store that fails after the job has published costs digests, not the event."""

    def learn(_result: object) -> None:
        raise JobError("the store is gone")

    path, told = tmp_path / "events", list[str]()
    sender.follow(job_of(), str(path), told.append, lambda: None, learn)
    check_pair(events_in(path), "COMPLETE")
    assert ["the store is gone" in line for line in told] == [True]


@pytest.mark.parametrize(
    ("url", "namespace", "name"),
    [
        ("s3://bucket/a/b/", "s3://bucket", "a/b"),
        ("s3://bucket", "s3://bucket", "/"),
        ("/data/set", "file", "/data/set"),
        ("file:///data/my%20set", "file", "/data/my set"),
        (f"s3://anna:{KEY}@bucket/a?token={KEY}", "s3://bucket", "a"),
        (f"https://a:{KEY}@{KEY}@host:8/x/y#{KEY}", "https://host:8", "x/y"),
    ],
)
def test_datasets_are_named_as_openlineage_says(url: str, namespace: str, name: str) -> None:
    """Buckets are namespaces, keys names, paths lie in ``file``; userinfo and queries are gone."""
    found = jobs.generation(GenerateSpec(bundle="bundle", out=url, num_samples=1))
    assert (found.output.namespace, found.output.name) == (namespace, name)
    assert found.name == f"generate.{name if namespace == 'file' else f'{namespace}/{name}'}"
    assert KEY not in repr(found)


def test_a_relative_path_is_named_as_the_absolute_one(tmp_path: Path) -> None:
    """The same job from another folder has the same name and the same resume id."""
    here, there = (jobs.generation(GenerateSpec(bundle="b", out=out, num_samples=1)) for out in ("x", f"{tmp_path}/x"))
    assert (here.name, here.output, here.resume_id) == (there.name, there.output, there.resume_id)


def job_of() -> jobs.Job:
    return jobs.generation(GenerateSpec(bundle="bundle", out="set", num_samples=1))
