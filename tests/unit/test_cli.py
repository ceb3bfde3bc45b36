"""The command line: help for everything, and for whatever is wrong one clear message, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from genworker import __version__
from genworker.bulk import commit, ledger
from genworker.bulk.plan import BUNDLE_PREFIX, MANIFEST_KEY, SUCCESS_KEY
from genworker.bulk.request import GenerateSpec, make_plan, numerics_for
from genworker.bulk.shard import ShardMaker
from genworker.bundle import BUNDLE_KEY, WEIGHTS_KEY, Bundle, Lineage
from genworker.cli import _Commands, cli
from genworker.errors import GenworkerError, UsageError
from genworker.reading import open_dataset
from genworker.stores import open_store
from genworker.training import loop, record
from genworker.training.spec import TrainSpec
from tests.fakes import dataset as fake
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
COMMANDS = sorted(cli.commands)


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command of these tests may get as far as a cluster: joining this one fails at once."""
    monkeypatch.setenv("RAY_ADDRESS", "no-cluster-in-these-tests://x")


def run(*args: object) -> Outcome:
    """Run a command in this process; any exception but the exit is the test's failure."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return Outcome(result.exit_code, result.stdout, result.stderr)


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Places(NamedTuple):
    """What lies around, by kind."""

    root: Path
    bundle: str
    dataset: str
    unfinished: str
    fake: str
    run: str
    begun: str
    spec: str


SPEC = {
    "data": {"name": "fashion-mnist", "url": "shipped", "limit": 16},
    "family": models.family_values("vae"),
    "training": {"images": 16, "batch_size": 8, "precision": "float32"},
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each kind, made once."""
    root = tmp_path_factory.mktemp("places")
    bundle = models.bundle_of()
    bundle.save(open_store(str(root / "bundle")))
    for name, stop in (("dataset", None), ("unfinished", 2)):
        store = open_store(str(root / name))
        spec = GenerateSpec(bundle=str(root / "bundle"), out=store.url, num_samples=40, samples_per_shard=12)
        plan = make_plan(spec, bundle.info, numerics_for(spec, bundle.info.image_schema, CPU))
        commit.claim(store, plan)
        commit.store_bundle(store, bundle)
        maker = ShardMaker(store, CPU)
        receipts = [maker.make(task, 0) for task in list(plan.tasks())[:stop]]
        ledger.write(store, plan, receipts)
        if stop is None:
            commit.publish(store, plan, {receipt.shard_index: receipt for receipt in receipts})
    fake.publish(str(root / "fake"), fake.make_plan())
    (root / "spec.yaml").write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    spec = TrainSpec.parse(SPEC, origin="test")
    for name in ("run", "begun"):
        record.claim(spec, open_store(str(root / name)))
    record.Lines(open_store(str(root / "begun")), record.ENVIRONMENT_KEY).flush()
    shutil.copytree(root / "begun", root / "measured")
    bundle.save(open_store(str(root / "measured")), record.BEST_PREFIX)
    loop.train(
        spec,
        models.shipped_source(16),
        open_store(str(root / "run")),
        rank=0,
        world_size=1,
        device=CPU,
        hooks=loop.Hooks(),
    )
    return root


@pytest.fixture
def places(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """The same for one test, in a folder of its own that is the working directory."""
    root = tmp_path / "work"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    return Places(root, "bundle", "dataset", "unfinished", "fake", "run", "begun", "spec.yaml")


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_program_explains_itself() -> None:
    """--help lists every command with a sentence; --version tells the version."""
    outcome = run("--help")
    assert outcome.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", outcome.out, re.MULTILINE)
    assert run("--version").out == f"genworker, version {__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, flag: str) -> None:
    """Each command says what it does and what every option of it is for."""
    outcome = run(name, flag)
    assert outcome.code == 0
    assert outcome.out.startswith("Usage: ")
    command = cli.commands[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in outcome.out
            has_choices = isinstance(parameter.type, click.Choice)
            assert parameter.help or has_choices, f"{name} {parameter.opts[0]} has no help"


# --- what goes well --------------------------------------------------------------------------------------------------


def test_train_dry_run_prints_a_spec_and_writes_nothing(places: Places) -> None:
    """The resolved spec is YAML that can be trained, with overrides and flags applied; beside it stands the run's size."""
    before = files_in(places.root)
    outcome = run("train", places.spec, "--out", "new", "--dry-run", "--set", "training.images=10", "--workers", 3)
    assert outcome.code == 0
    size = r"train: 10 images in 2 steps of 8, 3 workers with 1 CPU each; ([a-z]+ [\d,]+ parameters(, |\n)){2,}"
    assert re.fullmatch(size, outcome.err)
    spec = TrainSpec.parse(yaml.safe_load(outcome.out), origin="dry run")
    assert (spec.training.images, spec.resources.workers, spec.data.limit) == (10, 3, 16)
    assert files_in(places.root) == before


def test_train_dry_run_needs_no_data(places: Places) -> None:
    """Where the data cannot be opened from here, the rest of the run's size is told."""
    args = (
        "--set",
        f"data.url={places.root}/nowhere",
        "--set",
        "resources.workers=[1,2]",
        "--set",
        "resources.use_gpu=true",
    )
    outcome = run("train", places.spec, "--out", "new", "--dry-run", *args)
    assert outcome.code == 0
    assert "1 to 2 workers with 1 CPU and 1 GPU each; parameters are not known here (" in outcome.err
    assert yaml.safe_load(outcome.out)["resources"]["workers"] == [1, 2]


def test_train_tells_once_of_files_that_are_not_read(places: Places) -> None:
    """A folder with images that are not decoded says so before anything is trained, beside a dry run's size and in a log."""
    photos = places.root / "photos"
    photos.mkdir()
    for number in range(16):
        Image.new("L", (28, 28), number).save(photos / f"{number}.png")
    Image.new("L", (28, 28)).save(photos / "16.gif")
    data = {"name": "image-folder", "url": str(photos), "image_size": 28, "channels": 1}
    Path("photos.yaml").write_text(yaml.safe_dump(SPEC | {"data": data}), encoding="utf-8")
    said = f"{photos}: files that are not read: 1, 16.gif first, because only .png, "
    outcome = run("train", "photos.yaml", "--out", "new", "--dry-run")
    told, size = outcome.err.splitlines()
    assert told.startswith(f"train: {said}")
    assert size.startswith("train: 16 images in 2 steps")
    outcome = run("train", "photos.yaml", "--out", places.begun)  # a run of other data, so it ends there
    assert outcome.code != 0
    events = [json.loads(line) for line in outcome.err.splitlines() if line.startswith("{")]
    (event,) = [event for event in events if event["event"] == "data"]
    assert event["level"] == "warning"
    assert event["message"].startswith(said)


def test_generate_dry_run_prints_the_plan_and_writes_nothing(places: Places) -> None:
    """The plan is JSON; run where it was made already, it is the plan that lies there."""
    before = files_in(places.root)
    command = ("generate", places.bundle, "--out", "new", "--num-samples", 500, "--dry-run", "--seed", 4)
    outcome = run(*command, "--no-calibrate")
    assert (outcome.code, outcome.err) == (0, "")
    values = json.loads(outcome.out)
    # What a job that measures first will choose is not known yet, and that is said.
    measuring = run(*command)
    assert json.loads(measuring.out) == values
    assert measuring.err.startswith("generate: a long job measures first what is fastest")
    assert "another plan_id than here; with --no-calibrate" in measuring.err
    assert (values["plan"]["seed"], values["plan"]["num_samples"], values["num_shards"]) == (4, 500, 4)
    again = run(
        *("generate", places.bundle, "--out", places.dataset, "--num-samples", 40, "--samples-per-shard", 12),
        "--dry-run",
    )
    assert json.loads(again.out)["plan_id"] == open_dataset(places.dataset).manifest.plan_id
    # A plan that lies there is settled. Four shards, and so four micro-batches where one would do.
    assert again.err.startswith("generate: samples_per_shard 12: shards end inside micro-batches of 128")
    assert files_in(places.root) == before


def test_a_dry_run_with_a_price_tells_the_cost(places: Places) -> None:
    """Of one actor like this machine, which is measured now; more samples cost more."""
    costs = []
    for count in (500_000, 5_000_000):
        outcome = run(
            "generate", places.bundle, "--out", "new", "--num-samples", count, "--dry-run", "--price-per-hour", 0.05
        )
        assert outcome.code == 0, outcome.err
        told = json.loads(outcome.out)["one_actor_like_this_machine"]
        assert told["cost"] == pytest.approx(told["seconds"] / 3600 * 0.05, abs=1e-5)
        costs.append(told["cost"])
    assert costs[0] < costs[1]
    assert not Path("new").exists()


def test_a_bundle_that_diverged_is_refused_before_anything_is_written(places: Places) -> None:
    """Weights that are not finite end a new job at once: no cluster is started, and the URL stays free."""
    bundle = models.bundle_of()
    networks = bundle.networks()
    next(networks.parameters()).fill_(float("nan"))
    Bundle.pack(bundle.info.family, bundle.info.image_schema, networks, Lineage()).save(open_store("diverged"))
    before = files_in(places.root)
    outcome = run("generate", "diverged", "--out", "new", "--num-samples", 40, "--no-calibrate")
    assert outcome.code == 1
    assert "are NaN or infinite" in outcome.err
    assert files_in(places.root) == before


def test_a_finished_dataset_is_left_as_it_is(places: Places) -> None:
    """Generating it again makes nothing and needs no cluster."""
    before = files_in(places.root)
    outcome = run("generate", places.bundle, "--out", places.dataset, "--num-samples", 40, "--samples-per-shard", 12)
    assert outcome.code == 0, outcome.err
    assert "40 samples in 4 shards" in outcome.out
    assert "nothing, it was complete" in outcome.out
    assert files_in(places.root) == before


def test_a_finished_run_is_left_as_it_is(places: Places) -> None:
    """Training it again makes nothing and needs no cluster."""
    before = files_in(places.root)
    outcome = run("train", places.spec, "--out", places.run)
    assert outcome.code == 0, outcome.err
    assert "is finished" in outcome.err
    assert f"bundle: {places.run}/bundle" in outcome.out
    assert files_in(places.root) == before


@pytest.mark.parametrize("resample", [0, 1, 99])
def test_verify_says_ok(places: Places, resample: int) -> None:
    """A sound dataset is reported with its size, and its shards are remade on request."""
    outcome = run("verify", places.dataset, "--resample", resample)
    assert outcome.code == 0
    assert outcome.out.startswith("ok: 40 samples in 4 shards")
    assert (f"{min(resample, 4)} of them remade with equal bytes" in outcome.out) == bool(resample)
    values = json.loads(run("verify", places.dataset, "--resample", resample, "--json").out)
    assert values == {"url": places.dataset, "ok": True, "resampled": resample, "faults": []}


def test_verify_by_sizes_says_so(places: Places) -> None:
    """What was not looked at is not claimed."""
    outcome = run("verify", places.dataset, "--sizes-only")
    assert outcome.code == 0
    assert outcome.out == "ok: 40 samples in 4 shards, by the sizes that the store lists\n"


@pytest.mark.parametrize(
    ("place", "facts"),
    [
        ("bundle", {"kind": "bundle", "family": "r3gan", "latent_dim": 6, "samples": "7x6x3, 3 classes"}),
        ("run", {"kind": "run", "finished": True}),
        ("run/bundle", {"kind": "bundle", "family": "vae", "images_seen": 16}),
        ("begun", {"kind": "run", "finished": False}),
        ("dataset", {"kind": "dataset", "published": True, "num_samples": 40, "num_shards": 4}),
        ("unfinished", {"kind": "dataset", "published": False, "shards_stored": 2, "num_shards": 4}),
        ("fake", {"kind": "dataset", "published": True, "num_samples": 50, "bundle": "not stored"}),
    ],
)
def test_info_tells_what_lies_there(places: Places, place: str, facts: dict[str, object]) -> None:
    """Info names the kind and the facts of whatever it is, as JSON or as lines with the same keys."""
    outcome = run("info", place, "--json")
    assert outcome.code == 0
    values = json.loads(outcome.out)
    assert facts.items() <= values.items()
    lines = run("info", place).out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == [key.replace("_", " ") for key in values]


def test_info_json_is_json_even_of_a_run_that_diverged(places: Places) -> None:
    """Numbers that are no numbers do not make the output something that strict parsers refuse."""
    store = open_store(places.begun)
    reports = record.Lines(store, record.METRICS_KEY)
    reports.append({"images_seen": 8, "loss": float("nan"), "kl_per_latent": [1.0, float("inf")]})
    reports.flush()

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    json.loads(run("info", places.begun, "--json").out, parse_constant=refuse)


@pytest.mark.parametrize("place", ["bundle", "run", "dataset", "fake"])
def test_show_writes_a_sample(places: Places, place: str) -> None:
    """One sample of whatever can give one is written as a PNG of its size."""
    outcome = run("show", place, "--index", 7, "--out", "sample.png")
    assert outcome.code == 0, outcome.err
    with Image.open("sample.png") as image:
        assert f"sample 7, class {outcome.out.split('class ')[1][0]}, {image.width}x{image.height}" in outcome.out


def test_a_sample_is_the_same_read_and_remade(places: Places) -> None:
    """Reading sample i, regenerating it from the plan, and asking the bundle with the same seed give one picture."""
    pictures = []
    for args in ((places.dataset,), (places.dataset, "--regenerate"), (places.bundle, "--seed", 0)):
        assert run("show", *args, "--index", 39, "--out", "sample.png").code == 0
        pictures.append(Path("sample.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    assert run("show", places.unfinished, "--regenerate", "--index", 39, "--out", "sample.png").code == 0
    assert Path("sample.png").read_bytes() == pictures[0]


@pytest.mark.parametrize("place", ["bundle", "run", "dataset", "fake"])
def test_sheet_writes_a_page(places: Places, place: str) -> None:
    """A page of samples is a PNG of the size that is told."""
    outcome = run("sheet", place, "--out", "page.png", "--per-class", 2)
    assert outcome.code == 0, outcome.err
    with Image.open("page.png") as image:
        assert outcome.out == f"page.png: {image.width}x{image.height}\n"


def test_sheet_puts_real_images_beside(places: Places) -> None:
    """With a spec's data, the page grows by a block of real images."""
    sizes = []
    for extra in ((), ("--real", places.spec)):
        assert run("sheet", "run", "--out", "page.png", "--per-class", 1, *extra).code == 0
        with Image.open("page.png") as image:
            sizes.append(image.size)
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize("args", [("sheet", "run", "--out", "page.png", "--real"), ("evaluate", "run", "--data")])
def test_what_is_not_read_of_real_images_is_told(places: Places, args: tuple[str, ...]) -> None:
    """Whoever looks at real images, or compares with them, learns which files are left out, as in training."""
    for name in ("train/a/0.png", "train/b/1.png", "test/a/2.png", "raw/a/3.png"):
        path = places.root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    spec = SPEC | {"data": {"name": "image-folder", "url": str(places.root / "pictures"), "image_size": 8}}
    (places.root / "pictures.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    outcome = run(*args, places.root / "pictures.yaml", *(("--split", "test") if args[0] == "evaluate" else ()))
    remark = f"{args[0]}: {places.root / 'pictures'}: files that are not read: 1, raw/a/3.png first"
    assert outcome.err.count(remark) == 1


# --- what goes wrong -------------------------------------------------------------------------------------------------


class Wrong(NamedTuple):
    """A command that cannot succeed, how it ends, and what it says."""

    args: tuple[object, ...]
    code: int
    message: str


def generate(*args: object, bundle: str = "bundle", out: str = "new", num_samples: object = 10) -> tuple[object, ...]:
    return "generate", bundle, "--out", out, "--num-samples", num_samples, *args


def train(*args: object, spec: str = "spec.yaml", out: str = "new") -> tuple[object, ...]:
    return "train", spec, "--out", out, *args


WRONG = {
    "a run that was measured": Wrong(("evaluate", "measured"), 2, "not finished; evaluate .*/measured/best, the best"),
    "a run that was not": Wrong(("evaluate", "begun"), 2, "it is not finished; run the training command again$"),
    # usage
    "no such command": Wrong(("generat",), 2, "No such command 'generat'"),
    "no such option": Wrong(("info", "bundle", "--jsn"), 2, "No such option.*--jsn"),
    "generate without out": Wrong(("generate", "bundle", "--num-samples", 5), 2, "Missing option '--out'"),
    "no samples": Wrong(generate(num_samples=0), 2, "0 is not in the range x>=1"),
    "half a sample": Wrong(generate(num_samples="1.5"), 2, "'1.5' is not a valid integer"),
    "negative seed": Wrong(generate("--seed", -1), 2, "-1 is not in the range"),
    "huge seed": Wrong(generate("--seed", 2**63), 2, "key 'seed' is 9223372036854775808"),
    "unknown codec": Wrong(generate("--codec", "pgn"), 2, "codec 'pgn'.*did you mean 'png'"),
    "unknown format": Wrong(generate("--format", "parket"), 2, "format 'parket'.*did you mean 'parquet'"),
    "unknown split": Wrong(generate("--split", "dev"), 2, "'dev' is not one of"),
    "label without a value": Wrong(generate("--node-label", "zone="), 2, "'zone=': write it as NAME=VALUE"),
    "no actors": Wrong(
        generate("--actors", 0), 2, "key 'actors' is '0': write a number of actors, or min:max as in 2:8"
    ),
    "half a range of actors": Wrong(generate("--actors", "2:"), 2, "key 'actors' is '2:': write a number of actors"),
    "actors in other digits": Wrong(generate("--actors", "\u0663"), 2, "key 'actors' is .*: write a number of actors"),
    "very many actors": Wrong(generate("--actors", "9" * 5_000), 2, "key 'actors' is '999.*: write a number of actors"),
    "no name of a label": Wrong(
        generate("--node-label", "a b=c"), 2, "key 'node_labels'.*a b=c: names and values of labels"
    ),
    "no value of a label": Wrong(generate("--node-label", "a=in()"), 2, r"a=in\(\): names and values of labels"),
    "a label in no domain": Wrong(generate("--node-label", "-/b=c"), 2, "key 'node_labels'.*-/b=c: names and values"),
    "a label in half a domain": Wrong(generate("--node-label", "a.-/b=c"), 2, "key 'node_labels'.*a.-/b=c: names"),
    "a crumb of a GPU": Wrong(generate("--use-gpu", "--gpus-per-actor", "0.00001"), 2, "gpus_per_actor.*0.0001"),
    "memory as output": Wrong(generate("--dry-run", out="memory://x"), 2, "memory:// lives in one process"),
    "home of nobody": Wrong(generate(out="~no-such-user-here/x"), 2, "store URL '~no-such-user-here/x'"),
    "bytes that are no text": Wrong(generate(out="bad\udcff"), 2, "holds bytes that are no UTF-8"),
    "no GPU here": Wrong(
        generate("--use-gpu", "--dry-run"), 2, "use_gpu: torch .* finds no GPU on this machine; leave --use-gpu out"
    ),
    "too many processors": Wrong(generate("--cpus-per-actor", "5000"), 2, "5000 is not in the range 1<=x<=1024"),
    "endless GPUs": Wrong(generate("--use-gpu", "--gpus-per-actor", "inf"), 2, "gpus_per_actor.*finite"),
    "an endless price": Wrong(generate("--price-per-hour", "inf", "--dry-run"), 2, "price_per_hour.*finite"),
    "unknown class": Wrong(generate("--labels", "3"), 2, "labels '3': say 'balanced', 'uniform', or a class number"),
    "memory out": Wrong(generate(out="memory://x"), 2, "memory:// lives in one process"),
    "unknown scheme": Wrong(generate(out="ftp://x/y"), 2, "scheme 'ftp': not known"),
    "empty out": Wrong(generate(out=""), 2, "store URL '': it is empty"),
    "s3 without bucket": Wrong(generate(out="s3://"), 2, "s3://"),
    "unknown spec": Wrong(train(spec="no-such-spec"), 2, "there is no such file, and no shipped spec"),
    "spec is no mapping": Wrong(train(spec="list.yaml"), 2, "holds a list at the top"),
    "unknown key": Wrong(train("--set", "training.imags=5"), 2, "unknown key 'training.imags'; did you mean 'images'"),
    "bad set": Wrong(train("--set", "training"), 2, "write it as key=value"),
    "more workers than images": Wrong(train("--workers", 9), 2, "batch_size 8 is smaller than resources.workers 9"),
    "unknown family": Wrong(
        train("--set", "family.name=ddpm"), 2, "key 'family.name' is 'ddpm'; known: 'r3gan', 'vae'"
    ),
    "info of nothing": Wrong(("info", "nothing"), 2, "nothing: there is no dataset, training run or bundle here"),
    "show of nothing": Wrong(("show", "nothing", "--index", 0, "--out", "x.png"), 2, "there is no dataset"),
    "sheet of nothing": Wrong(("sheet", "nothing", "--out", "x.png"), 2, "there is no dataset"),
    "index past the end": Wrong(("show", "dataset", "--index", 40, "--out", "x.png"), 2, "so the last index is 39"),
    "index past the plan": Wrong(
        ("show", "dataset", "--regenerate", "--index", 40, "--out", "x.png"), 2, "--index 40: the plan has 40 samples"
    ),
    "negative index": Wrong(("show", "dataset", "--index", -1, "--out", "x.png"), 2, "-1 is not in the range"),
    "huge seed of a sample": Wrong(("show", "bundle", "--seed", 2**64, "--index", 0, "--out", "x.png"), 2, "seed"),
    "show into no folder": Wrong(
        ("show", "dataset", "--index", 0, "--out", "no/x.png"), 2, "--out no/x.png: cannot be"
    ),
    "sheet into no folder": Wrong(("sheet", "dataset", "--out", "no/x.png"), 2, "--out no/x.png: cannot be written"),
    "show into a folder": Wrong(("show", "dataset", "--index", 0, "--out", "bundle"), 2, "is a directory"),
    "a sample of a GPU where there is none": Wrong(
        ("show", "dataset", "--regenerate", "--use-gpu", "--index", 0, "--out", "x.png"), 2, "finds no GPU"
    ),
    "sheet beside no spec": Wrong(("sheet", "bundle", "--out", "x.png", "--real", "no"), 2, "no shipped spec"),
    # the world is not as it should be
    "no bundle": Wrong(generate(bundle="nothing"), 1, "nothing.*there is no bundle"),
    "a run is no bundle": Wrong(generate(bundle="run"), 1, "there is no bundle.*'bundle' below the URL"),
    "a dataset is no bundle": Wrong(generate(bundle="dataset"), 1, "there is no bundle"),
    "bundle of another version": Wrong(generate(bundle="future"), 1, "version 2; this genworker reads version 1"),
    "damaged bundle": Wrong(generate(bundle="damaged"), 1, "weights.safetensors: has only 7 bytes"),
    "shards past the limit": Wrong(
        generate("--samples-per-shard", 10**12), 1, "samples_per_shard 1000000000000: .* use at most"
    ),
    "another plan": Wrong(generate(out="dataset"), 1, r"dataset of another.*|num_samples: 10 here, 40 there"),
    "another seed": Wrong(
        generate("--samples-per-shard", 12, "--seed", 1, num_samples=40, out="unfinished"), 1, "seed: 1 here, 0 there"
    ),
    "damaged plan": Wrong(generate(out="badplan"), 1, r"badplan/\.genworker/plan\.json"),
    "no data": Wrong(
        train("--set", "data={name: image-folder, url: nothing, image_size: 8}", "--set", "training.images=9"),
        1,
        "nothing",
    ),
    "no idx files": Wrong(train("--set", "data.url=nothing"), 1, "nothing"),
    "more images in a batch than there are": Wrong(
        train("--set", "training.batch_size=17"), 1, "batch_size 17: the source has only 16 images"
    ),
    "networks that no image fits": Wrong(
        train("--set", "family.encoder.widths=[4, 4, 4, 4, 4, 4, 4, 4]"),
        2,
        "widths .*more than twice the image of 28x28",
    ),
    "networks that no memory holds": Wrong(
        train("--set", "family.prior=vampprior", "--set", "family.num_pseudo_inputs=4611686018427387904"),
        2,
        "family vae: its networks cannot be built",
    ),
    "fewer pseudo-inputs than classes": Wrong(
        train("--set", "family.prior=vampprior", "--set", "family.num_pseudo_inputs=9"), 2, "num_pseudo_inputs 9"
    ),
    "another run": Wrong(train("--set", "seed=1", out="begun"), 1, "seed: 1 here, 0 there"),
    "another finished run": Wrong(train("--set", "seed=1", out="run"), 1, "seed: 1 here, 0 there"),
    "a file in the way of the run": Wrong(train(out="spec.yaml/run"), 1, "spec.yaml"),
    "a file in the way of the dataset": Wrong(generate(out="spec.yaml/data"), 1, "spec.yaml|no-cluster-in"),
    "show of a run without a bundle": Wrong(("show", "begun", "--index", 0, "--out", "x.png"), 1, "there is no bundle"),
    "show of an unfinished dataset": Wrong(
        ("show", "unfinished", "--index", 0, "--out", "x.png"), 1, "2 of 4 shards are there"
    ),
    "sheet of an unfinished dataset": Wrong(("sheet", "unfinished", "--out", "x.png"), 1, "2 of 4 shards are there"),
    "remade without a bundle": Wrong(
        ("show", "fake", "--regenerate", "--index", 0, "--out", "x.png"), 1, "there is no bundle"
    ),
    "verify of nothing": Wrong(("verify", "nothing"), 1, "no manifest: .* so this is no dataset of genworker"),
    "verify of a bundle": Wrong(("verify", "bundle"), 1, "so this is no dataset of genworker"),
    "verify of an unfinished dataset": Wrong(("verify", "unfinished"), 1, "the job has not finished \\(2 of 4 shards"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_one_message(places: Places, name: str) -> None:
    """One message on one of the streams, exit code 2 for a wrong request and 1 for anything else, and nothing is written."""
    (places.root / "list.yaml").write_text("[1, 2]", encoding="utf-8")
    store = open_store(str(places.root / "future"))
    store.put(BUNDLE_KEY, b'{"version": 2}')
    models.bundle_of().save(open_store("damaged"))
    (places.root / "damaged" / WEIGHTS_KEY).write_bytes(b"damaged")
    open_store("badplan").put(".genworker/plan.json", b"{}")
    before = files_in(places.root)
    wrong = WRONG[name]
    outcome = run(*wrong.args)
    assert outcome.code == wrong.code, outcome
    said = outcome.err + outcome.out
    assert re.search(wrong.message, said, re.DOTALL), said
    assert said.count("Error: ") <= 1
    assert len(said) < 2500, said
    assert files_in(places.root) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_told(places: Places) -> None:
    """A folder that may not be written to is an error that names it."""
    (places.root / "locked").mkdir(mode=0o500)
    outcome = run(*train(out="locked/new"))
    assert outcome.code == 1
    assert "locked" in outcome.err


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is gone": (lambda root: next((root / "data").iterdir()).unlink(), "is missing, the manifest names it"),
    "a shard is cut": (lambda root: truncate(next((root / "data").iterdir())), "cut short"),
    "a foreign file": (lambda root: (root / "data" / "x.parquet").write_bytes(b"x"), "foreign object"),
    "no _SUCCESS": (lambda root: (root / SUCCESS_KEY).unlink(), "_SUCCESS: is missing"),
    "a damaged manifest": (lambda root: (root / MANIFEST_KEY).write_bytes(b"{"), MANIFEST_KEY),
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_lists_the_faults_of_a_damaged_dataset(places: Places, name: str) -> None:
    """Each fault is a line, the exit code is 1, and as JSON the same faults are a list."""
    change, message = DAMAGES[name]
    change(places.root / places.dataset)
    outcome = run("verify", places.dataset)
    assert outcome.code == 1
    assert re.search(message, outcome.out)
    as_json = run("verify", places.dataset, "--json", "--resample", 2)
    values = json.loads(as_json.out)
    assert as_json.code == 1
    assert values["ok"] is False
    assert values["faults"] == outcome.out.splitlines()


@pytest.mark.parametrize("flags", [(), ("--sizes-only",)])
def test_verify_looks_at_the_bundle_too(places: Places, flags: tuple[str, ...]) -> None:
    """Samples are made again from it: one that is another, lacks its weights, or was changed is a fault of the dataset."""
    store = open_store(places.dataset)
    assert run("verify", places.dataset, *flags).code == 0

    def told(*more: str) -> str:
        outcome = run("verify", places.dataset, *flags, *more)
        assert outcome.code == 1
        return outcome.out + outcome.err

    models.bundle_of(seed=1).save(store, BUNDLE_PREFIX)
    assert f"{BUNDLE_PREFIX}{BUNDLE_KEY}: is of bundle" in told()
    models.bundle_of().save(store, BUNDLE_PREFIX)
    weights = BUNDLE_PREFIX + WEIGHTS_KEY
    whole = store.get(weights)
    store.put(weights, whole[:-1], overwrite=True)
    assert f"{weights}: has " in told()
    store.delete(weights)
    assert f"{weights}: {'is ' if flags else ''}missing" in told()
    store.put(weights, whole)
    store.delete(BUNDLE_PREFIX + BUNDLE_KEY)
    assert f"{BUNDLE_PREFIX}{BUNDLE_KEY}: is missing, though {BUNDLE_PREFIX}" in told()
    for info in list(store.list(BUNDLE_PREFIX)):
        store.delete(info.key)  # nothing is left of it, by which data are as good as before
    assert run("verify", places.dataset, *flags).code == 0
    if not flags:
        assert "is missing, and shards are made from the bundle there; copy bundle" in told("--resample", "1")


def test_a_broken_picture_is_not_left_behind(places: Places) -> None:
    """When a picture cannot be made, the file that was there stays as it was."""
    Path("x.png").write_bytes(b"mine")
    assert run("show", places.unfinished, "--index", 0, "--out", "x.png").code == 1
    assert Path("x.png").read_bytes() == b"mine"


# --- exit codes ------------------------------------------------------------------------------------------------------


def group_that(raises: BaseException) -> click.Group:
    @click.command()
    def command() -> None:
        raise raises

    return _Commands(name="genworker", commands={"command": command})


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (GenworkerError("what failed"), 1, "Error: what failed\n"),
        (UsageError("what is wrong"), 2, "Error: what is wrong\n"),
        (KeyboardInterrupt(), 130, "\nStopped. What was made stays; run the same command again to go on.\n"),
    ],
)
def test_errors_become_exit_codes(error: BaseException, code: int, said: str) -> None:
    """Our errors end in one message and their exit code; Ctrl-C in 130 and the promise that work is kept."""
    result = CliRunner().invoke(group_that(error), ["command"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", said)


def test_our_own_bugs_are_not_dressed_up() -> None:
    """Any other exception is a bug, and keeps its traceback."""
    result = CliRunner().invoke(group_that(ZeroDivisionError("bug")), ["command"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--version"], 0),
        (["info", "no-such-place"], 2),
        (["verify", "no-such-place"], 1),
        (["generate", "no-such-place", "--out", "x", "--num-samples", "5", "--dry-run"], 1),
    ],
)
def test_the_installed_program_has_these_exit_codes(tmp_path: Path, args: list[str], code: int) -> None:
    """As a process, too, the program ends with the right code and without a traceback, and leaves nothing behind."""
    program = Path(sys.executable).parent / "genworker"
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train", "generate", "evaluate"])
def test_job_entries_are_the_commands(tmp_path: Path, name: str) -> None:
    """What `ray job submit` runs takes the arguments of the command of its name."""
    script = ROOT / "jobs" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path
    )
    own = run(name, "--help").out
    assert done.stdout.split("Options:")[0].split()[2:] == own.split("Options:")[0].split()[2:]


def test_a_cluster_that_cannot_be_joined_is_named(places: Places) -> None:
    """Last of all checks comes the cluster; its address is in the message, and nothing was written before."""
    before = files_in(places.root)
    # A process of its own: other tests of this run may be connected to a cluster, which would be used.
    program = [sys.executable, "-c", "from genworker.cli import main; main()"]
    done = subprocess.run([*program, *map(str, generate())], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RAY_ADDRESS 'no-cluster-in-these-tests://x': cannot join this cluster" in done.stderr
    assert "Traceback" not in done.stderr
    assert files_in(places.root) == before
