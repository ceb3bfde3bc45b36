"""Plans: every sample is in one shard, every field decides the id, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.bulk.plan import DATA_PREFIX, Numerics, Plan, differences
from genworker.bulk.request import GenerateSpec
from genworker.config import canonical_json
from genworker.errors import UsageError
from genworker.schema import ImageSchema

SCHEMA = ImageSchema(channels=1, height=28, width=28, num_classes=10)
NUMERICS = Numerics(
    device_class="cpu/AVX512",
    dtype="float32",
    memory_format="channels_last",
    micro_batch=128,
    libraries={"torch": "2.13.0", "codec": "png 1", "format": "parquet 1"},
)


def plan_of(**changes: Any) -> Plan:
    """A valid plan with some fields changed."""
    values: dict[str, Any] = {
        "bundle_digest": "a" * 64,
        "image_schema": SCHEMA.model_dump(),
        "seed": 0,
        "num_samples": 1000,
        "samples_per_shard": 128,
        "format": "parquet",
        "codec": "png",
        "numerics": NUMERICS.model_dump(),
    }
    return Plan.parse(values | changes, origin="test")


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(1, 3000), samples_per_shard=st.integers(1, 4000))
def test_the_shards_cover_every_sample_once(num_samples: int, samples_per_shard: int) -> None:
    """Shard after shard, the tasks hold 0, 1, ..., N - 1, none of them is empty, and shard_of finds each sample's."""
    plan = plan_of(num_samples=num_samples, samples_per_shard=samples_per_shard)
    tasks = list(plan.tasks())
    assert len(tasks) == plan.num_shards
    position = 0
    for index, task in enumerate(tasks):
        assert (task.shard_index, task.first_index) == (index, position)
        assert 1 <= task.num_samples <= samples_per_shard
        last = task.first_index + task.num_samples - 1
        assert plan.shard_of(task.first_index) == plan.shard_of(last) == index
        position += task.num_samples
    assert position == num_samples


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(1, 10**18 - 1), samples_per_shard=st.integers(1, 2**40), data=st.data())
def test_any_shard_of_a_huge_plan_is_found_at_once(
    num_samples: int, samples_per_shard: int, data: st.DataObject
) -> None:
    """Task and sample lookups agree without anything being listed."""
    plan = plan_of(num_samples=num_samples, samples_per_shard=samples_per_shard)
    sample = data.draw(st.integers(0, num_samples - 1))
    task = plan.task(plan.shard_of(sample))
    assert task.first_index <= sample < task.first_index + task.num_samples <= num_samples


@pytest.mark.parametrize("num_shards", [1, 9, 99_999, 100_000, 1_234_567])
def test_shard_names_sort_by_index(num_shards: int) -> None:
    """Names have one length, so that sorting them as text sorts them by index, also where digits are added."""
    plan = plan_of(num_samples=num_shards, samples_per_shard=1)
    picked = sorted({0, 1, 9, 10, 99_998, 99_999, 100_000, num_shards - 1} & set(range(num_shards)))
    keys = [plan.shard_key(index) for index in picked]
    assert keys == sorted(keys)
    assert len({len(key) for key in keys}) == 1
    assert len(set(keys)) == len(keys)


def test_shard_names_are_those_that_others_know() -> None:
    """A shard's key follows the naming of Hugging Face: split, index of count, extension."""
    assert plan_of(num_samples=300, samples_per_shard=100).shard_key(2) == f"{DATA_PREFIX}train-00002-of-00003.parquet"
    assert plan_of(split="test").shard_key(0).startswith(f"{DATA_PREFIX}test-00000-of-00008.")


@pytest.mark.parametrize("index", [-1, 8])
def test_shards_outside_the_plan_are_refused(index: int) -> None:
    """A shard index outside [0, num_shards) is an error that tells how many there are."""
    with pytest.raises(IndexError, match="8"):
        plan_of().task(index)


@pytest.mark.parametrize("index", [-1, 1000])
def test_samples_outside_the_plan_are_refused(index: int) -> None:
    """A sample index outside [0, num_samples) is an error that tells how many there are."""
    with pytest.raises(IndexError, match="1000"):
        plan_of().shard_of(index)


CHANGES: dict[str, Any] = {
    "bundle_digest": "b" * 64,
    "image_schema": SCHEMA.model_copy(update={"width": 27}).model_dump(),
    "seed": 1,
    "num_samples": 1001,
    "samples_per_shard": 129,
    "labels": "uniform",
    "split": "test",
    "format": "webdataset",
    "codec": "raw",
    "columns": ("label",),
    "latent_dim": 7,
    "scorer_sha256": "2" * 64,
    "numerics": NUMERICS.model_copy(update={"micro_batch": 64}).model_dump(),
}
# What goes with the fields that one alone cannot change.
TOGETHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "columns": ({"columns": ()}, {}),
    "latent_dim": ({"columns": ("latents",), "latent_dim": 6}, {"columns": ("latents",)}),
    "scorer_sha256": ({"columns": ("score",), "scorer_sha256": "1" * 64}, {"columns": ("score",)}),
}
NUMERIC_CHANGES: dict[str, Any] = {
    "device_class": "cpu/AVX2",
    "dtype": "bfloat16",
    "memory_format": "contiguous",
    "micro_batch": 64,
    "upsampling": "subpixel",
    "launch": "cuda_graph",
    "threads": 3,
    "libraries": NUMERICS.libraries | {"torch": "2.14.0"},
}


def test_every_field_is_tried() -> None:
    """A field that is added to the plan has to be added to these tests; the version has only one value."""
    assert CHANGES.keys() == Plan.model_fields.keys() - {"version"}
    assert NUMERIC_CHANGES.keys() == Numerics.model_fields.keys()


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_decides_the_plan_id(field: str) -> None:
    """Another value of any field gives another plan_id, and `differences` names that field and both values alone."""
    before, beside = TOGETHER.get(field, ({}, {}))
    plan, other = plan_of(**before), plan_of(**beside, **{field: CHANGES[field]})
    assert plan.plan_id != other.plan_id
    (line,) = differences(other, plan)
    assert line.startswith(f"{field}: ")
    assert line.count(" here, ") == 1
    assert line.endswith(" there")


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": ("latents", "label"), "latent_dim": 6},
        {"columns": ("label", "label")},
        {"columns": ("latents",)},
        {"latent_dim": 6},
        {"columns": ("score",)},
        {"scorer_sha256": "1" * 64},
    ],
)
def test_columns_have_one_spelling_and_all_that_they_need(changes: dict[str, Any]) -> None:
    """Columns in another order, twice, or without the latents or the scorer that they are of, are refused."""
    with pytest.raises(UsageError, match=r"columns \["):
        plan_of(**changes)


@pytest.mark.parametrize("field", NUMERIC_CHANGES)
def test_all_numerics_decide_the_plan_id(field: str) -> None:
    """Whatever decides bits is part of the id."""
    other = plan_of(numerics=NUMERICS.model_dump() | {field: NUMERIC_CHANGES[field]})
    assert other.plan_id != plan_of().plan_id


def test_equal_plans_have_equal_ids_and_no_differences() -> None:
    """The id is a function of the values: a plan read back from its JSON is the same plan."""
    plan = plan_of(seed=5)
    again = Plan.model_validate_json(canonical_json(plan.model_dump(mode="json")))
    assert again == plan
    assert again.plan_id == plan.plan_id
    assert differences(plan, again) == []


def test_the_plan_id_is_the_pinned_one() -> None:
    """The id of a plan, written down: datasets of an older version must be found by the same id."""
    assert plan_of().plan_id == "1a28475f6a820547"


@pytest.mark.parametrize("labels", ["balanced", "uniform", "0", "9"])
def test_known_labels_are_taken(labels: str) -> None:
    """The two rules and every class number are label rules."""
    assert plan_of(labels=labels).labels == labels


@pytest.mark.parametrize("labels", ["10", "-1", "", "coat", "1.0", "Balanced", "\u00b2", "\u0663", "9" * 20])
def test_unknown_labels_are_refused(labels: str) -> None:
    """Anything else is refused in one line that shows the value and says what may stand there."""
    with pytest.raises(UsageError, match="'balanced', 'uniform', or a class number below 10") as caught:
        plan_of(labels=labels)
    assert repr(labels) in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_samples", 0),
        ("samples_per_shard", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("split", "dev"),
        ("version", 2),
        ("workers", 4),
    ],
)
def test_wrong_values_are_refused(field: str, value: object) -> None:
    """Values outside their range, and fields that no plan has, are refused by name."""
    with pytest.raises(UsageError, match=field):
        plan_of(**{field: value})


def test_more_samples_than_can_be_named_are_refused() -> None:
    """Keys of samples have 18 digits at most, in every format: more samples are refused in plans and in requests."""
    request = {"bundle": "-", "out": "-"}
    assert plan_of(num_samples=10**18 - 1).num_samples == 10**18 - 1
    assert GenerateSpec.parse(request | {"num_samples": 10**18 - 1}, origin="test").num_samples == 10**18 - 1
    message = "key 'num_samples' is 1000000000000000000: samples are named by their index, .* use less than 10"
    with pytest.raises(UsageError, match=message):
        plan_of(num_samples=10**18)
    with pytest.raises(UsageError, match=message):
        GenerateSpec.parse(request | {"num_samples": 10**18}, origin="test")


def test_a_shards_provenance_names_plan_and_range() -> None:
    """What a shard says about itself tells the plan and which samples it holds."""
    plan = plan_of()
    assert plan.provenance(plan.task(7)) == {"plan_id": plan.plan_id, "first_index": "896", "num_samples": "104"}
