"""Evaluations: of bundles, of checkpoints and on the command line; what they compare with, and what they leave."""

from __future__ import annotations

import json
import shutil
import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from genworker import bundle as bundles
from genworker.bundle import Lineage
from genworker.cli import cli
from genworker.errors import CheckpointError, UsageError
from genworker.metrics.cards import Measured
from genworker.metrics.classifier import ClassifierConfig, SmallConvNet, to_images
from genworker.metrics.extractor import load_extractor
from genworker.schema import ImageSchema, SampleBatch
from genworker.sources.fashion_mnist import FashionMnistConfig
from genworker.stores import open_store
from genworker.training import best, checkpoint, loop, record, reference
from genworker.training.best import evaluate_checkpoint
from genworker.training.evaluation import evaluate, generate
from genworker.training.extractors import get_extractor
from genworker.training.log_likelihood import has_likelihood, score_likelihood
from genworker.training.order import held_out_indices
from genworker.training.reference import RealImages, RealSet, real_images
from tests.fakes import models

if TYPE_CHECKING:
    from pathlib import Path

    from genworker.schema import Int64Array
    from genworker.stores import Store

CPU = torch.device("cpu")
QUICK = ClassifierConfig(images=256)
LIMIT = 400


def memory() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def real(share: float = 0.1) -> RealImages:
    return real_images(FashionMnistConfig(url="shipped", limit=LIMIT), share, "held-out")


class Unlabelled:
    """The shipped images without their labels."""

    def __init__(self) -> None:
        self._source = models.shipped_source(LIMIT)
        self.schema = self._source.schema.model_copy(update={"num_classes": 0, "class_names": ()})
        self.corrupt: list[str] = []
        self.blocks = None

    def __len__(self) -> int:
        return LIMIT

    def read(self, indices: Int64Array) -> SampleBatch:
        batch = self._source.read(indices)
        return SampleBatch(batch.sample_index, batch.pixels, None)

    def prefetch(self, indices: Int64Array) -> None:
        pass

    def digest(self) -> str:
        return "unlabelled"


def test_the_reference_is_what_training_never_sees() -> None:
    """The held-out images of the run's own rule, and the training images are all others."""
    images = real()
    np.testing.assert_array_equal(images.reference.indices, held_out_indices(LIMIT, 0.1))
    assert len(images.reference) == 40
    together = np.concatenate([images.train.indices, images.reference.indices])
    np.testing.assert_array_equal(np.sort(together), np.arange(LIMIT))


def test_nothing_held_out_is_refused() -> None:
    """The message says which key to change."""
    with pytest.raises(UsageError, match=r"training.holdout_share 0 of 400 images .* evaluation.num_samples to 0"):
        real(0.0)


def test_some_images_are_always_the_same_and_digests_tell_sets_apart() -> None:
    """A choice of images is a function of the set, without repeats; other images or another order have other digests."""
    train = real().train
    some = train.some(50)
    np.testing.assert_array_equal(some.indices, train.some(50).indices)
    assert len(np.unique(some.indices)) == 50
    assert np.ptp(some.indices) > LIMIT / 2  # from all over the data, which may be sorted by class
    assert len({train.digest(), some.digest(), RealSet(some.source, some.indices[::-1]).digest()}) == 3
    np.testing.assert_array_equal(np.concatenate([batch.sample_index for batch in some.batches()]), some.indices)


def test_an_evaluation_has_numbers_floor_and_cards() -> None:
    """Every usual metric of a conditional generator, with what it was made from, ready for JSON."""
    images, bundle = real(), models.bundle_of(schema=models.GREY)
    outcome = evaluate(bundle, images, num_samples=60, cache=memory(), config=QUICK)
    assert list(outcome.scores) == ["frechet", "kid", "prdc", "modes", "label-accuracy"]
    assert outcome.numbers["frechet"] > outcome.floor["frechet"].numbers["frechet"]
    card = outcome.scores["frechet"].card
    assert (card.num_real, card.num_generated, card.split, card.image_size) == (40, 60, "held-out", "28x28x1")
    assert (card.label, card.reference) == ("FD-classifier-64", images.reference.digest())
    assert outcome.floor["frechet"].card == card  # as many training images as samples
    text = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert text["metrics"].keys() == text["floor"].keys() == outcome.numbers.keys()
    assert text["cards"]["kid"]["extractor_digest"] == card.extractor_digest
    again = evaluate(bundle, images, num_samples=60, config=QUICK)
    assert again.numbers == outcome.numbers
    assert {name: score.card for name, score in again.scores.items()} == {
        name: score.card for name, score in outcome.scores.items()
    }


def test_samples_are_those_of_a_dataset_and_do_not_depend_on_how_many_there_are() -> None:
    """Sample i is a function of seed and i, whatever comes after it."""
    bundle = models.bundle_of(schema=models.GREY)
    labels = np.arange(200, dtype=np.int64) % 10
    few, many = (
        np.concatenate([pixels for pixels, _ in generate(bundle, count, 3, labels[:count], CPU)])
        for count in (128, 200)
    )
    np.testing.assert_array_equal(few, many[:128])
    other = np.concatenate([pixels for pixels, _ in generate(bundle, 128, 4, labels[:128], CPU)])
    assert (other != few).any()


def test_without_labels_features_are_random_and_say_so() -> None:
    """No classifier can be trained, so a seeded random network looks, under its own name."""
    source = Unlabelled()
    images = real_images(FashionMnistConfig(url="shipped"), 0.1, "held-out", source)
    bundle = models.bundle_of(schema=source.schema)
    outcome = evaluate(bundle, images, num_samples=50)
    assert list(outcome.scores) == ["frechet", "kid", "prdc"]
    assert outcome.scores["frechet"].card.label == "FD-random-64"
    assert outcome.numbers["frechet"] > outcome.floor["frechet"].numbers["frechet"]


def test_unconditional_generators_of_labelled_data() -> None:
    """They are measured by the classifier, but not asked whether they made the right class."""
    bundle = models.bundle_of(schema=models.GREY, conditional=False)
    assert "label-accuracy" not in evaluate(bundle, real(), num_samples=30, config=QUICK).scores
    with pytest.raises(UsageError, match="'cas' needs labels: the generator is not conditional"):
        evaluate(bundle, real(), num_samples=30, names=["cas"], config=QUICK)


def test_data_of_another_shape_is_refused() -> None:
    """The message shows both shapes."""
    with pytest.raises(UsageError, match=r"makes images of 7x6x3, 3 classes, the data has 28x28x1, 10 classes"):
        evaluate(models.bundle_of(), real())


@pytest.mark.parametrize(
    ("classes", "said"), [(3, "of 3 classes, the data has 10"), (12, "of 12 classes, the data has 10")]
)
def test_data_of_other_classes_is_refused(classes: int, said: str) -> None:
    """A generator that is asked for a class has to know it; one that is asked for none may be measured with any."""
    schema = models.GREY.model_copy(update={"num_classes": classes})
    with pytest.raises(UsageError, match=said):
        evaluate(models.bundle_of(schema=schema), real(), num_samples=30, config=QUICK)
    evaluate(
        models.bundle_of(schema=schema, conditional=False), real(), num_samples=30, names=["frechet"], config=QUICK
    )


def test_data_without_classes_is_refused_for_a_conditional_generator() -> None:
    """There is nothing to ask it for."""
    images = real_images(FashionMnistConfig(url="shipped"), 0.1, "held-out", Unlabelled())
    with pytest.raises(UsageError, match="of 10 classes, the data has none"):
        evaluate(models.bundle_of(schema=models.GREY), images, num_samples=30)


def test_the_extractor_is_kept_and_the_first_one_counts() -> None:
    """A second evaluation takes what the first has stored; other data or another recipe has an extractor of its own."""
    cache, images = memory(), real()
    first = get_extractor(images, cache, QUICK)
    (info,) = cache.list("evaluation/")
    other = get_extractor(images, None, ClassifierConfig(images=256, seed=9))
    cache.put(info.key, other.to_bytes(), overwrite=True)
    assert get_extractor(images, cache, QUICK).digest == other.digest != first.digest
    get_extractor(real(0.2), cache, QUICK)
    assert len(list(cache.list("evaluation/"))) == 2
    cache.put(info.key, b"not an extractor", overwrite=True)
    with pytest.raises(UsageError, match=rf"{info.key}: is not an extractor of this version"):
        get_extractor(images, cache, QUICK)


def test_extractors_survive_storage() -> None:
    """Bytes and back give the same features, for classifiers and for random networks."""
    for images in (real(), real_images(FashionMnistConfig(url="shipped"), 0.1, "held-out", Unlabelled())):
        made = get_extractor(images, None, QUICK)
        back = load_extractor(made.to_bytes())
        pixels = models.shipped_source(20).read(np.arange(20, dtype=np.int64)).pixels
        np.testing.assert_array_equal(made.observe(pixels, None).features, back.observe(pixels, None).features)
        assert (back.name, back.num_classes, back.digest) == (made.name, made.num_classes, made.digest)
        with pytest.raises(UsageError, match="was made for images of 28x28x1"):
            back.observe(np.zeros((2, 28, 28, 3), np.uint8), None)


@pytest.mark.parametrize(("height", "width", "channels"), [(5, 9, 1), (8, 8, 3), (14, 14, 1), (32, 48, 3), (96, 64, 4)])
def test_the_network_takes_images_of_any_shape(height: int, width: int, channels: int) -> None:
    """Features and logits have their sizes, and both depend on the image."""
    schema = ImageSchema(channels=channels, height=height, width=width, num_classes=3)
    network = SmallConvNet(schema).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, height, width, channels), dtype=np.uint8)
    features, logits = network(to_images(pixels))
    assert features.shape == (4, 64)
    assert logits.shape == (4, 3)
    assert logits.unique(dim=0).shape[0] == 4


def test_a_likelihood_stands_beside_its_floor() -> None:
    """Held-out images under a VAE, training images as the floor; a GAN has none."""
    bundle = models.bundle_of("vae", schema=models.GREY)
    assert has_likelihood(bundle)
    assert not has_likelihood(models.bundle_of("r3gan", schema=models.GREY))
    scores = [score_likelihood(bundle, real(), num_images=12, num_samples=k, seed=0, device=CPU) for k in (1, 64)]
    (loose, _), (tight, floor) = scores
    assert tight.numbers["log_likelihood"] > loose.numbers["log_likelihood"]  # more samples make the bound tighter
    assert floor.numbers["log_likelihood"] != tight.numbers["log_likelihood"]
    assert (tight.card.num_real, tight.card.settings["samples_per_image"]) == (12, 64)


def test_a_likelihood_does_not_depend_on_how_its_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image shares its latents with another that is read at another time, so blocks of any size give the same numbers."""
    bundle = models.bundle_of("vae", schema=models.GREY)
    numbers = []
    for size in (500, 5):
        monkeypatch.setattr(reference, "_READ_AT_ONCE", size)
        numbers.append(score_likelihood(bundle, real(), num_images=12, num_samples=1, seed=0, device=CPU)[0].numbers)
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny conditional GAN."""
    folder = tmp_path_factory.mktemp("run")
    spec = models.train_spec("r3gan", limit=LIMIT, holdout_share=0.1)
    record.claim(spec, open_store(str(folder)))
    source = models.shipped_source(LIMIT)
    loop.train(spec, source, open_store(str(folder)), rank=0, world_size=1, device=CPU, hooks=loop.Hooks())
    return folder


def test_a_checkpoint_is_evaluated_into_its_run(run: Path) -> None:
    """The averaged weights are measured: the numbers are those of the bundle, which holds the same weights."""
    spec = models.train_spec("r3gan", limit=LIMIT, holdout_share=0.1)
    settings = spec.evaluation.model_copy(update={"num_samples": 40, "extractor_images": 256})
    spec = spec.model_copy(update={"evaluation": settings})
    key = "checkpoints/images-000000000048.safetensors"
    measured = evaluate_checkpoint(spec, str(run), key)
    assert measured is not None
    outcome, is_best = measured
    assert is_best
    store = open_store(str(run))
    kept = bundles.load_info(store, record.BEST_PREFIX).lineage
    assert kept.images_seen == 48
    assert outcome["bundle"] == bundles.load_info(store, record.BUNDLE_PREFIX).digest
    assert kept.evaluation is not None
    assert kept.evaluation == Measured.of(outcome)
    assert kept.evaluation.images_seen == 48
    assert kept.evaluation.metrics == outcome["metrics"]
    assert kept.evaluation.cards["frechet"].label.startswith("FD-")
    stored = json.loads((run / "evaluations" / "images-000000000048.json").read_text())
    assert stored == outcome
    assert outcome["images_seen"] == 48
    assert record.read_evaluations(store) == [stored]
    result = CliRunner().invoke(cli, ["evaluate", str(run), "--num-samples", "40", "--out", str(run / "quality.json")])
    assert result.exit_code == 0, result.output
    found = json.loads((run / "quality.json").read_text())
    assert found["metrics"].keys() == outcome["metrics"].keys()
    other = models.train_spec("r3gan", limit=LIMIT, holdout_share=0.1, seed=1)
    with pytest.raises(CheckpointError, match="written by another spec"):
        evaluate_checkpoint(other, str(run), key)


def test_a_finished_bundle_tells_the_evaluation_of_its_weights(run: Path, tmp_path: Path) -> None:
    """Only of exactly these; of the bundle nothing changes but its lineage, and twice is as once."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    store = open_store(str(tmp_path))
    before = bundles.load(store, record.BUNDLE_PREFIX, with_scorer=True)
    numbers = {"metrics": {"frechet": 7.5, "kid": None}, "floor": {"frechet": 1.5}, "seconds": 3.0}
    of_others = {"images_seen": 48, "bundle": "0" * 64, **numbers}
    store.put(record.evaluation_key(48), json.dumps(of_others).encode(), overwrite=True)
    best.note_evaluation(store)
    assert bundles.load_info(store, record.BUNDLE_PREFIX) == before.info
    store.put(record.evaluation_key(32), json.dumps(of_others | {"images_seen": 32}).encode(), overwrite=True)
    of_it = of_others | {"bundle": before.digest}
    store.put(record.evaluation_key(48), json.dumps(of_it).encode(), overwrite=True)
    for _ in range(2):
        best.note_evaluation(store)
        after = bundles.load(store, record.BUNDLE_PREFIX, with_scorer=True)
        assert after.digest == before.digest
        assert after.info.lineage.evaluation == Measured.of(of_it)
        assert after.info.lineage.model_copy(update={"evaluation": None}) == before.info.lineage


def test_what_the_run_dropped_meanwhile_is_put_back_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A best checkpoint that was pruned while it was measured is there again; one that a rollback took back leaves nothing."""
    store = open_store(str(tmp_path))
    spec = models.train_spec("r3gan", limit=LIMIT, holdout_share=0.1, keep_checkpoints=1)
    settings = spec.evaluation.model_copy(update={"num_samples": 20, "extractor_images": 256})
    spec = spec.model_copy(update={"evaluation": settings})
    loop.train(spec, models.shipped_source(LIMIT), store, rank=0, world_size=1, device=CPU, hooks=loop.Hooks())
    (key,) = checkpoint.keys(store)
    content = store.get(key)
    monkeypatch.setattr(best, "evaluate", lambda *args, **options: store.delete(key) or evaluate(*args, **options))
    evaluate_checkpoint(spec, str(tmp_path), key)
    assert store.get(key) == content
    checkpoint.prune(store, 0, frozenset(best.best_of(store, spec)))
    assert store.get(key) == content  # from now on its evaluation protects it

    store.delete(record.evaluation_key(48))
    rollbacks = record.Lines(store, record.ROLLBACKS_KEY)
    rollbacks.append({"rollback": 1, "images_seen": 48})
    rollbacks.flush()
    assert not record.was_taken_back(store, 48, rollbacks=0)
    rollbacks.append({"rollback": 1, "images_seen": 16})
    rollbacks.flush()
    assert evaluate_checkpoint(spec, str(tmp_path), key) is None
    assert checkpoint.keys(store) == record.read_evaluations(store) == []
    assert not record.was_taken_back(store, 48, rollbacks=1)


def test_the_command_prints_numbers_floor_and_card(run: Path) -> None:
    """A table with the floor beside each number, and what was compared with what."""
    args = ["evaluate", str(run / "bundle"), "--num-samples", "40", "--metrics", "frechet,modes", "--cache", str(run)]
    result = CliRunner().invoke(cli, args, terminal_width=200)
    assert result.exit_code == 0, result.output
    assert "FD-classifier-64" in result.output
    assert "classes_found" in result.output
    assert "40 samples against 40 held-out images" in result.output
    assert "FID" not in result.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--metrics", "fid"], "metric 'fid': there is no such metric"),
        (["--split", "test"], "only the first 10,000 images of the training split ship"),
        (["--data", "nowhere"], "there is no such file, and no shipped spec has that name"),
    ],
)
def test_wrong_requests_are_told(run: Path, args: list[str], said: str) -> None:
    """One message, no traceback."""
    result = CliRunner().invoke(cli, ["evaluate", str(run), "--num-samples", "40", *args])
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())


def test_a_bundle_without_a_past_needs_data(tmp_path: Path) -> None:
    """What it was trained on is not in it, so the user has to say what to compare with."""
    models.bundle_of(lineage=Lineage()).save(open_store(str(tmp_path)))
    result = CliRunner().invoke(cli, ["evaluate", str(tmp_path)])
    assert result.exit_code == 2
    assert "name a spec with --data" in result.output
