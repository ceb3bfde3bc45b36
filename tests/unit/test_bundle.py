"""Bundles: what was packed is what is loaded, and whatever else lies there is refused by name."""

from __future__ import annotations

import hashlib
import json
import pickle
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genworker import bundle as bundles
from genworker import families
from genworker.bundle import BUNDLE_KEY, SCORER_KEY, WEIGHTS_KEY, Bundle, Lineage
from genworker.config import canonical_json
from genworker.errors import BundleError
from genworker.schema import ImageSchema
from genworker.stores import open_store
from tests.fakes import models
from tests.memory import growth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.stores import Store

FAMILIES = sorted(families.FAMILIES)


@pytest.fixture
def store() -> Store:
    """A store that nobody else uses, with a bundle of an r3gan below ``b/``."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    models.bundle_of().save(store, "b/")
    return store


def edit(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bundle.json."""
    data = json.loads(store.get(f"b/{BUNDLE_KEY}"))
    change(data)
    store.put(f"b/{BUNDLE_KEY}", json.dumps(data).encode(), overwrite=True)


def reweigh(store: Store, weights: bytes) -> None:
    """Replace the weights, and the checksum with them, as a stranger could."""
    store.put(f"b/{WEIGHTS_KEY}", weights, overwrite=True)
    digest = {"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_bytes": len(weights)}
    edit(store, lambda data: data.update(digest))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "deep/bundle/"])
def test_a_loaded_bundle_is_the_saved_one(name: str, prefix: str) -> None:
    """Pack, save, load gives the same digest, the same description and the same images."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    packed = models.bundle_of(name, lineage=Lineage(source="s", images_seen=5, metrics={"loss": 0.5}))
    packed.save(store, prefix)
    loaded = bundles.load(store, prefix)
    assert (loaded.digest, loaded.info) == (packed.digest, packed.info)
    assert bundles.load_info(store, prefix) == packed.info
    z, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    assert torch.equal(loaded.generator()(z, labels), packed.generator()(z, labels))


def test_a_bundle_from_before_evaluations_were_kept_loads() -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}")
    packed = models.bundle_of()
    packed.save(store, "b/")
    edit(store, lambda data: data["lineage"].pop("evaluation"))
    assert bundles.load(store, "b/").info == packed.info


def test_a_bundle_holds_what_is_served_and_no_more() -> None:
    """A GAN's discriminator stays behind; a VAE keeps its encoder, which can embed."""
    assert models.bundle_of("r3gan").info.networks == ("generator",)
    assert {"encoder", "decoder"} <= set(models.bundle_of("vae").info.networks)
    for name in FAMILIES:
        tensors = safetensors.torch.load(models.bundle_of(name)._weights)
        assert {key.split(".")[0] for key in tensors} <= set(families.get(name).served)


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_weights_give_equal_bytes(name: str) -> None:
    """Two bundles of equal weights have the same objects, bit for bit."""
    stores = [open_store(f"memory://{uuid.uuid4().hex}") for _ in range(2)]
    for store in stores:
        models.bundle_of(name).save(store)
    for key in (BUNDLE_KEY, WEIGHTS_KEY):
        assert stores[0].get(key) == stores[1].get(key)


def test_lineage_is_no_part_of_the_digest() -> None:
    """Where a bundle comes from and when it was made does not change what it computes."""
    one, other = (models.bundle_of(lineage=Lineage(source=text, created=text)) for text in ("one", "other"))
    assert one.digest == other.digest
    assert one.info != other.info


def test_whatever_decides_samples_decides_the_digest() -> None:
    """Other weights, another config and another schema give other digests."""
    schema = models.SMALL.model_copy(update={"class_names": ("a", "b", "c")})
    digests = {
        models.bundle_of().digest,
        models.bundle_of(seed=1).digest,
        models.bundle_of(output="linear").digest,
        models.bundle_of(schema=schema).digest,
        models.bundle_of("vae").digest,
    }
    assert len(digests) == 5


def test_loaded_networks_do_not_learn() -> None:
    """A loaded generator is in evaluation mode and asks for no gradients."""
    for name in FAMILIES:
        networks = models.bundle_of(name).networks()
        assert not networks.training
        assert not any(parameter.requires_grad for parameter in networks.parameters())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_the_weights_is_found(store: Store, data: st.DataObject) -> None:
    """Whichever bit of the weights is flipped, the bundle is refused and the file named."""
    weights = bytearray(store.get(f"b/{WEIGHTS_KEY}"))
    position = data.draw(st.integers(0, 8 * len(weights) - 1))
    weights[position // 8] ^= 1 << position % 8
    copy = open_store(f"memory://{uuid.uuid4().hex}")
    copy.put(f"b/{BUNDLE_KEY}", store.get(f"b/{BUNDLE_KEY}"))
    copy.put(f"b/{WEIGHTS_KEY}", bytes(weights))
    with pytest.raises(BundleError, match=f"b/{WEIGHTS_KEY}: SHA-256 is"):
        bundles.load(copy, "b/")


def test_truncated_weights_are_found(store: Store) -> None:
    """Weights that were cut short are refused, however much is missing."""
    weights = store.get(f"b/{WEIGHTS_KEY}")
    for size in (0, 7, 8, len(weights) // 2, len(weights) - 1):
        store.put(f"b/{WEIGHTS_KEY}", weights[:size], overwrite=True)
        with pytest.raises(BundleError, match=f"b/{WEIGHTS_KEY}"):
            bundles.load(store, "b/")


def test_missing_weights_are_named(store: Store) -> None:
    """A description without weights is told apart from no bundle at all."""
    store.delete(f"b/{WEIGHTS_KEY}")
    with pytest.raises(BundleError, match=rf"b/{WEIGHTS_KEY}: missing, though {BUNDLE_KEY} is there"):
        bundles.load(store, "b/")


@pytest.mark.parametrize("load", [bundles.load, bundles.load_info])
def test_no_bundle_is_an_error_that_says_where_to_look(store: Store, load: Callable[..., object]) -> None:
    """Where there is nothing, the message names the place and how bundles come to be."""
    with pytest.raises(BundleError, match="there is no bundle") as caught:
        load(store, "elsewhere/")
    assert f"{store.url}/elsewhere" in str(caught.value)
    assert "genworker train" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\x00\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"version": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b"[]", "version None"),
        (b"null", "version None"),
        (b"{}", "version None"),
        (b'{"version": 2}', "version 2; this genworker reads version 1"),
        (b'{"version": "1"}', "version '1'"),
        (b'{"version": 1}', "family: "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_garbage_instead_of_json_is_refused(store: Store, content: bytes, message: str) -> None:
    """Whatever bundle.json holds, the answer is one BundleError that names the file."""
    store.put(f"b/{BUNDLE_KEY}", content, overwrite=True)
    with pytest.raises(BundleError, match=message) as caught:
        bundles.load(store, "b/")
    assert f"b/{BUNDLE_KEY}" in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("change", [{"networks": ["\ud800"]}, {"networks": ["a\x1b\udfff"]}], ids=ascii)
def test_a_name_without_a_digest_is_refused(store: Store, change: dict[str, Any]) -> None:
    """JSON can hold halves of characters, which UTF-8, and so a digest, cannot."""
    edit(store, lambda data: data.update(change))
    with pytest.raises(BundleError, match=f"b/{BUNDLE_KEY}: there is no digest of what it holds"):
        bundles.load_info(store, "b/")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60) | st.dictionaries(st.text(max_size=9), st.integers()).map(json.dumps).map(str.encode)
)
def test_no_content_makes_another_error(store: Store, content: bytes) -> None:
    """Random bytes and random JSON never get past BundleError."""
    store.put(f"b/{BUNDLE_KEY}", content, overwrite=True)
    with pytest.raises(BundleError, match=BUNDLE_KEY):
        bundles.load(store, "b/")


@pytest.mark.parametrize("key", [WEIGHTS_KEY, SCORER_KEY])
def test_weights_of_another_size_are_not_read_whole(tmp_path: Path, key: str) -> None:
    """An object of 200 MB where bundle.json promises a few kilobytes is refused without being fetched; so is a shorter one."""
    store = open_store(str(tmp_path))
    models.bundle_of().save(store, "b/")
    size = (tmp_path / "b" / key).stat().st_size
    with (tmp_path / "b" / key).open("r+b") as file:
        file.truncate(200_000_000)
    with growth() as grown, pytest.raises(BundleError, match=f"b/{key}: has more bytes, bundle.json says {size};"):
        bundles.load(store, "b/", with_scorer=True)
    assert grown.mib < 50
    with (tmp_path / "b" / key).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(BundleError, match=f"b/{key}: has only {size - 1} bytes"):
        bundles.load(store, "b/", with_scorer=True)


@pytest.mark.parametrize("size", [0, -1, 2**48, 2**63, 10**30])
def test_a_size_that_no_weights_have_is_refused(store: Store, size: int) -> None:
    edit(store, lambda data: data.update(weights_bytes=size))
    with pytest.raises(BundleError, match=f"{BUNDLE_KEY}: weights_bytes: Input should be"):
        bundles.load(store, "b/")


def test_a_promise_alone_takes_no_memory(tmp_path: Path) -> None:
    """Weights that are said to have terabytes are found to be short, and no room is made for them."""
    store = open_store(str(tmp_path))
    models.bundle_of().save(store, "b/")
    edit(store, lambda data: data.update(weights_bytes=2**47))
    with pytest.raises(BundleError, match=f"{WEIGHTS_KEY}: has only"):
        bundles.load(store, "b/")


def test_a_huge_json_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle.json beyond any reason is refused by its size."""
    store.put(f"b/{BUNDLE_KEY}", b" " * (bundles.MAX_JSON_BYTES + 1), overwrite=True)
    with pytest.raises(BundleError, match=f"b/{BUNDLE_KEY}: has more than {bundles.MAX_JSON_BYTES} bytes"):
        bundles.load_info(store, "b/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["family"].update(name="diffusion"), "known families: r3gan, vae"),
        (lambda data: data["family"].update(latent_dim=0), "latent_dim"),
        (lambda data: data["family"].update(colour="red"), "colour"),
        (lambda data: data["image_schema"].update(channels=9), "image_schema.channels"),
        (lambda data: data.update(weights_sha256="xyz"), "weights_sha256"),
        (lambda data: data.pop("networks"), "networks"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.update(version=3), "version 3"),
    ],
)
def test_a_description_that_cannot_be_is_refused(
    store: Store, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A wrong value in bundle.json is refused with the file, the key and what is known."""
    edit(store, change)
    with pytest.raises(BundleError, match=message) as caught:
        bundles.load(store, "b/")
    assert f"b/{BUNDLE_KEY}" in str(caught.value)


def tensors_of(store: Store) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(store.get(f"b/{WEIGHTS_KEY}"))


@pytest.mark.parametrize("damage", ["renamed", "missing", "extra", "reshaped", "empty"])
def test_weights_of_another_network_are_refused(store: Store, damage: str) -> None:
    """Weights whose names or shapes are not those of the config are refused, though their checksum is right."""
    tensors = tensors_of(store)
    name = sorted(tensors)[0]
    if damage == "renamed":
        tensors["other"] = tensors.pop(name)
    elif damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["other"] = torch.zeros(1)
    elif damage == "reshaped":
        tensors[name] = torch.zeros(1, 2, 3)
    else:
        tensors = {}
    reweigh(store, safetensors.torch.save(tensors))
    with pytest.raises(BundleError, match=f"b/{WEIGHTS_KEY}: does not fit a r3gan of the config"):
        bundles.load(store, "b/").generator()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(store: Store, value: float) -> None:
    """One weight that is no number makes black images; the tensor is named, and how many values of it are bad."""
    tensors = tensors_of(store)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    reweigh(store, safetensors.torch.save(tensors))
    loaded = bundles.load(store, "b/")
    message = f"b/{WEIGHTS_KEY}: 1 of the {tensors[name].numel()} values of {name} are NaN or infinite; take the bundle"
    for use in (loaded.check, loaded.generator):
        with pytest.raises(BundleError, match=message):
            use()


def test_a_scorer_that_is_not_finite_is_refused() -> None:
    """The discriminator is held to the same, where it is loaded."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    packed = models.bundle_of()
    judges = packed.scorer()[1]
    next(judges.parameters()).fill_(float("nan"))
    Bundle.pack(packed.info.family, packed.info.image_schema, packed.networks(), Lineage(), judges).save(store)
    bundles.load(store).check()
    with pytest.raises(BundleError, match=rf"{SCORER_KEY}: .* values of discriminator\..* are NaN or infinite"):
        bundles.load(store, with_scorer=True).check()


@pytest.mark.parametrize("networks", [[], ["discriminator"], ["generator", "discriminator"], ["generator", "critic"]])
def test_a_bundle_of_other_networks_is_refused(store: Store, networks: list[str]) -> None:
    """A description that names other networks than the family serves is refused, whatever the weights are."""
    edit(store, lambda data: data.update(networks=networks))
    with pytest.raises(BundleError, match="networks"):
        bundles.load(store, "b/").generator()


def test_a_bundle_without_networks_and_weights_is_refused(store: Store) -> None:
    """Naming no network and holding no weight fit each other, and are still no generator."""
    reweigh(store, safetensors.torch.save({}))
    edit(store, lambda data: data.update(networks=[]))
    with pytest.raises(BundleError, match="networks"):
        bundles.load(store, "b/").generator()


@pytest.mark.parametrize(
    "weights",
    [b"", b"\x00" * 8, b"\xff" * 64, pickle.dumps({"generator": [1, 2]}), b"PK\x03\x04" + b"\x00" * 60],
    ids=["empty", "zeros", "ones", "pickle", "zip"],
)
def test_weights_that_are_no_safetensors_are_refused(store: Store, weights: bytes) -> None:
    """A pickle, or any other file, under the name of the weights is an error and is not executed."""
    if weights:
        reweigh(store, weights)
    else:
        store.put(f"b/{WEIGHTS_KEY}", b"", overwrite=True)
    with pytest.raises(BundleError, match=WEIGHTS_KEY):
        bundles.load(store, "b/").generator()


class Bomb:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("the bundle was unpickled",)


def test_nothing_is_unpickled(store: Store) -> None:
    """Code in a pickle that pretends to be weights is never run."""
    reweigh(store, pickle.dumps(Bomb()))
    with pytest.raises(BundleError, match=WEIGHTS_KEY):
        bundles.load(store, "b/").generator()


def test_saving_again_replaces_a_broken_bundle(store: Store) -> None:
    """A bundle whose writer died between its two objects is made whole by saving it again."""
    store.put(f"b/{WEIGHTS_KEY}", b"half", overwrite=True)
    models.bundle_of().save(store, "b/")
    assert bundles.load(store, "b/").digest == models.bundle_of().digest


def test_the_digest_is_of_the_canonical_description() -> None:
    """The digest can be made by anybody from bundle.json alone."""
    info = models.bundle_of().info
    text = canonical_json(info.model_dump(mode="json", exclude={"lineage", "scorer"}))
    assert info.digest == hashlib.sha256(text.encode()).hexdigest()


def test_bundles_of_odd_shapes_load() -> None:
    """A grey image with an odd height and no classes makes a bundle like any other."""
    schema = ImageSchema(channels=1, height=5, width=9)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    models.bundle_of("vae", schema).save(store)
    assert isinstance(bundles.load(store), Bundle)
    assert bundles.load(store).generator()(torch.zeros(2, 6), None).shape == (2, 1, 5, 9)
