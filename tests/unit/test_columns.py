"""The optional columns of a dataset, from a request to what is stored: labels, latents, the discriminator's score."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from genworker import bundle as bundles
from genworker import families
from genworker.bulk import commit
from genworker.bulk.plan import BUNDLE_PREFIX, Plan
from genworker.bulk.request import GenerateSpec, make_plan, numerics_for, sample_schema
from genworker.bulk.shard import ShardMaker
from genworker.bundle import SCORER_KEY, Bundle
from genworker.errors import BundleError, UsageError
from genworker.families.base import Scorer
from genworker.reading import open_dataset, verify
from genworker.sampling.latents import latents
from genworker.stores import open_store
from genworker.stores.base import ObjectInfo
from genworker.training import packing
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Iterable

    from genworker.stores.base import Store

CPU = torch.device("cpu")
NUM = 40


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A tiny conditional GAN with its discriminator."""
    return models.bundle_of()


def plan_for(bundle: Bundle, **changes: Any) -> Plan:
    values = {"bundle": "bundle", "out": "-", "num_samples": NUM, "samples_per_shard": 15, "precision": "float32"}
    spec = GenerateSpec.parse(values | changes, origin="test")
    return make_plan(spec, bundle.info, numerics_for(spec, sample_schema(bundle.info), CPU))


def made(bundle: Bundle, **changes: Any) -> Store:
    """A published dataset of ``bundle``."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    plan = plan_for(bundle, **changes)
    commit.claim(store, plan)
    origin = open_store(f"memory://{uuid.uuid4().hex}")
    bundle.save(origin)
    commit.store_bundle(store, bundles.load(origin, with_scorer="score" in plan.columns))
    maker = ShardMaker(store, CPU)
    commit.publish(store, plan, {task.shard_index: maker.make(task, 0) for task in plan.tasks()})
    return store


def joined(parts: Iterable[Any]) -> Any:
    return np.concatenate(list(parts))


@pytest.mark.parametrize("format", ["parquet", "webdataset", "files"])
def test_all_columns_are_stored_and_read_back(bundle: Bundle, format: str) -> None:
    """Latents are those of the seed, scores those that the discriminator gives the stored pixels, and verify agrees."""
    store = made(bundle, columns="label, latents,score", format=format)
    assert verify(store.url) == []
    dataset = open_dataset(store.url)
    assert dataset.plan.columns == ("label", "latents", "score")
    batches = list(dataset.batches())
    np.testing.assert_array_equal(joined(b.latents for b in batches), latents(0, 0, NUM, 6))
    family, networks = bundle.scorer()
    images = torch.from_numpy(joined(b.pixels for b in batches)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = family.score(networks, images, torch.from_numpy(joined(b.labels for b in batches)))
    np.testing.assert_allclose(joined(b.scores for b in batches), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert len(set(joined(b.scores for b in batches).tolist())) == NUM
    sample = dataset[17]
    assert sample.latents is not None
    assert sample.score == pytest.approx(float(expected[17]), rel=1e-4)
    row = next(iter(dataset.to_torch()))
    assert set(row) == {"index", "pixels", "label", "latents", "score"}
    assert row["latents"].shape == (6,)


def test_the_cut_into_shards_changes_no_latent_and_no_score(bundle: Bundle) -> None:
    """Another shard size gives the same bits of every column."""
    sets = []
    for per_shard in (7, 40):
        url = made(bundle, columns="label,latents,score", samples_per_shard=per_shard).url
        sets.append(
            [(s.index, s.label, s.latents.tobytes(), s.score) for s in open_dataset(url) if s.latents is not None]
        )
    assert sets[0] == sets[1]
    assert len(sets[0]) == NUM


def test_labels_can_be_left_out(bundle: Bundle) -> None:
    """Without the label column the same images are stored, of the same classes, and nobody is told which."""
    with_labels, without = open_dataset(made(bundle).url), open_dataset(made(bundle, columns="").url)
    assert without.plan.columns == ()
    assert without.schema.num_classes == 0
    for ours, theirs in zip(with_labels, without, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert theirs.label is None


def test_columns_decide_the_plan(bundle: Bundle) -> None:
    """Each choice of columns is another plan; the order in which they are asked for is not."""
    texts = [None, "", "label", "latents", "score", "label,latents,score", "score,latents,label"]
    plans = [plan_for(bundle, columns=text).plan_id for text in texts]
    assert plans[0] == plans[2]
    assert plans[5] == plans[6]
    assert len(set(plans)) == 5


def test_impossible_columns_are_refused_before_anything_is_written(bundle: Bundle) -> None:
    """Unknown columns, labels that nobody knows, and scores that nobody can give are UsageErrors that say why."""
    with pytest.raises(UsageError, match=r"columns"):
        plan_for(bundle, columns="labels")
    with pytest.raises(UsageError, match="knows no classes"):
        plan_for(models.bundle_of(conditional=False), columns="label")
    for silent in (models.bundle_of("vae"), models.bundle_of(pac=2)):
        with pytest.raises(UsageError, match="holds no discriminator to score with"):
            plan_for(silent, columns="score")
    too_many = {"columns": "latents", "samples_per_shard": 2**31 // 24 + 1, "codec": "png"}
    with pytest.raises(Exception, match="use at most"):
        plan_for(bundle, **too_many)


def test_the_discriminator_is_stored_only_where_it_is_needed(bundle: Bundle) -> None:
    """It is a file of its own: loaded on demand, copied beside plans that score, and no part of the bundle's digest."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    bundle.save(store)
    assert keys(store) == {"bundle.json", "weights.safetensors", SCORER_KEY}
    lean = bundles.load(store)
    assert lean.digest == bundle.digest
    with pytest.raises(BundleError, match="no weights to score with are loaded"):
        lean.scorer()
    bundles.load(store, with_scorer=True).scorer()
    for columns, expected in (("label", False), ("score", True)):
        assert (BUNDLE_PREFIX + SCORER_KEY in keys(made(bundle, columns=columns))) == expected
    store.put(SCORER_KEY, b"other", overwrite=True)
    with pytest.raises(BundleError, match=f"{SCORER_KEY}: has only 5 bytes"):
        bundles.load(store, with_scorer=True)
    store.delete(SCORER_KEY)
    with pytest.raises(BundleError, match=f"{SCORER_KEY}: missing"):
        bundles.load(store, with_scorer=True)
    models.bundle_of("vae").save(store)
    with pytest.raises(BundleError, match="holds no discriminator to score with"):
        bundles.load(store, with_scorer=True)


def test_a_plan_with_scores_takes_no_other_discriminator(bundle: Bundle) -> None:
    """A generator with another discriminator has the same digest, and is refused for a plan that scores."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    commit.claim(store, plan_for(bundle, columns="score"))
    other = models.networks_of(bundle.info.family, bundle.info.image_schema, seed=9)
    judges = torch.nn.ModuleDict({"discriminator": other["discriminator"]})
    swapped = Bundle.pack(bundle.info.family, bundle.info.image_schema, bundle.networks(), bundle.info.lineage, judges)
    assert swapped.digest == bundle.digest
    commit.store_bundle(store, swapped)
    with pytest.raises(BundleError, match="the plan was made for scorer"):
        ShardMaker(store, CPU)
    # Who brings the right one replaces it.
    commit.store_bundle(store, bundle)
    ShardMaker(store, CPU)


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_scores_of_a_family_are_of_single_images(name: str) -> None:
    """A family that scores gives each image a number that does not depend on its neighbours."""
    family = families.make(models.family_config(name), models.SMALL)
    if not isinstance(family, Scorer):
        assert models.bundle_of(name).info.scorer is None
        return
    networks = models.networks_of(models.family_config(name), models.SMALL).eval()
    images, labels = torch.rand(5, 3, 7, 6) * 2 - 1, torch.arange(5) % 3
    with torch.no_grad():
        whole = family.score(networks, images, labels)
        alone = torch.cat([family.score(networks, images[i : i + 1], labels[i : i + 1]) for i in range(5)])
    assert whole.shape == (5,)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, alone)


def keys(store: Store) -> set[str]:
    infos: Iterable[ObjectInfo] = store.list()
    return {info.key for info in infos}


def test_training_packs_the_discriminator_as_it_was_trained() -> None:
    """The bundle of a run holds the trained discriminator beside the averaged generator."""
    from genworker.training.step import Trainer

    source = models.shipped_source()
    trainer = Trainer(models.train_spec("r3gan"), source, 0, 1, CPU)
    bundle = packing.pack_bundle(trainer, source, {})
    _, networks = bundle.scorer()
    for name, tensor in networks["discriminator"].state_dict().items():
        assert torch.equal(tensor, trainer.networks["discriminator"].state_dict()[name])
