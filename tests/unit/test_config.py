"""Specs: later layers win, an unknown key is an error that names the nearest one, and equal specs have equal digests."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from genworker.config import Spec, canonical_json, digest_of, load_spec, preset_names, preset_path, union_by_name
from genworker.errors import UsageError
from genworker.training.spec import TrainSpec
from tests.memory import growth

SPECS = sorted((Path(__file__).parents[2] / "jobs" / "specs").glob("*.yaml"))


class Circle(Spec):
    """One shape."""

    name: Literal["circle"] = "circle"
    radius: Annotated[float, Field(gt=0)] = 1.0


class Square(Spec):
    """The other shape."""

    name: Literal["square"] = "square"
    side: float = 2.0
    corners: int | tuple[int, ...] = 4


class Drawing(Spec):
    """What the tests configure."""

    title: str = "default"
    colour: str = "red"
    size: int = 1
    shape: union_by_name([Circle, Square]) = Circle()  # type: ignore[valid-type]
    layers: tuple[Circle, ...] = ()
    range: tuple[float, float] = (0.0, 1.0)
    widths: Annotated[tuple[Annotated[int, Field(lt=100)], ...], Field(min_length=1)] = (1,)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A YAML file that sets some keys."""
    path = tmp_path / "drawing.yaml"
    path.write_text("title: file\ncolour: file\nshape: {name: square, side: 5}\n", encoding="utf-8")
    return path


def parse(text: str) -> Drawing:
    """A drawing of YAML text."""
    return Drawing.parse(yaml.safe_load(text), origin="spec x.yaml")


def test_later_layers_win(file: Path) -> None:
    """Flags beat --set, --set beats the file, the file beats the defaults."""
    spec = load_spec(
        Drawing, str(file), ["colour=set", "size=3", "shape.side=7.5"], {"size": 9, "title": None, "shape.corners": 5}
    )
    assert (spec.title, spec.colour, spec.size) == ("file", "set", 9)
    assert spec.shape == Square(side=7.5, corners=5)


def test_the_last_set_of_a_key_wins(file: Path) -> None:
    """Of two overrides of one key the later one holds, and a mapping can be given whole."""
    spec = load_spec(Drawing, str(file), ["size=1", "size=2", "shape={name: circle, radius: 3}"], {})
    assert spec.size == 2
    assert spec.shape == Circle(radius=3)


def test_a_set_value_may_hold_equal_signs_and_be_empty(file: Path) -> None:
    """Everything after the first = is the value; nothing after it is YAML's null."""
    assert load_spec(Drawing, str(file), ["title=a=b"], {}).title == "a=b"
    with pytest.raises(UsageError, match="key 'title' is None"):
        load_spec(Drawing, str(file), ["title="], {})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("size", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("size={", "the value is not YAML"),
        ("title.deep=1", "'title' holds a plain value"),
        ("sise=1", "unknown key 'sise'; did you mean 'size'"),
        ("shape.sid=1", "unknown key 'shape.sid'; did you mean 'side'"),
        ("size=big", "key 'size' is 'big'"),
    ],
)
def test_a_wrong_set_is_named(file: Path, override: str, message: str) -> None:
    """A --set that cannot be right is refused with what was written and what to write instead."""
    with pytest.raises(UsageError, match=re.escape(message)):
        load_spec(Drawing, str(file), [override], {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x", "spec x.yaml: unknown key 'titel'; did you mean 'title'?"),
        ("zzz: x", "spec x.yaml: unknown key 'zzz'; known keys: colour, layers, range, shape, size, title, widths"),
        ("shape: {name: circle, radus: 1}", "spec x.yaml: unknown key 'shape.radus'; did you mean 'radius'?"),
        # A key of the other member of the union does not help.
        ("shape: {name: circle, side: 1}", "spec x.yaml: unknown key 'shape.side'; known keys: name, radius"),
        ("shape: {name: oval}", "spec x.yaml: key 'shape.name' is 'oval'; known: 'circle', 'square'"),
        ("shape: {radius: 1}", "spec x.yaml: key 'shape.name' is missing"),
        ("shape: 5", "spec x.yaml: key 'shape' is 5: it may be a mapping of corners, name, radius, side"),
        ("size: true", "spec x.yaml: key 'size' is True: it has to be a number"),
        ("shape: {name: circle, radius: true}", "spec x.yaml: key 'shape.radius' is True: it has to be a number"),
        (
            "layers: [{radius: 1}, {radius: true}]",
            "spec x.yaml: key 'layers.1.radius' is True: it has to be a number",
        ),
        ("range: [2]", "spec x.yaml: key 'range' is [2]: a value is missing"),
        ("range: []", "spec x.yaml: key 'range' is []: a value is missing"),
        (
            "shape: {name: circle, radius: -1}",
            "spec x.yaml: key 'shape.radius' is -1: Input should be greater than 0",
        ),
        ("layers: [{radius: 1}, {radus: 2}]", "unknown key 'layers.1.radus'; did you mean 'radius'?"),
        ("shape: {name: square, corners: many}", "spec x.yaml: key 'shape.corners' is 'many': "),
        ("3: x", "spec x.yaml: key '3' is 3: Keys should be strings"),
    ],
)
def test_a_wrong_key_is_named_as_it_was_written(text: str, message: str) -> None:
    """The error gives the path of the key in the file, also inside unions and lists, and the nearest known key."""
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse(text)
    for internal in ("tagged", "function-", "tuple[", "shape.circle", "shape.square", "extra_forbidden"):
        assert internal not in str(caught.value)


def test_every_wrong_key_has_a_line() -> None:
    """All mistakes of a file are shown at once, one per line."""
    with pytest.raises(UsageError) as caught:
        parse("titel: x\nsize: big\nshape: {name: circle, radus: 1}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("spec x.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "is not YAML"),
        (b"", "holds a NoneType at the top"),
        (b"- 1\n- 2\n", "holds a list at the top"),
        (b"just text", "holds a str at the top"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """What is not YAML, or not a mapping, is refused with the file's name."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_spec(Drawing, str(path), [], {})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-spec", "no/such/file.yaml", "."])
def test_an_unknown_spec_lists_the_known_ones(name: str) -> None:
    """A name that is neither a file nor a shipped spec is answered with the shipped ones."""
    with pytest.raises(UsageError, match="there is no such file") as caught:
        load_spec(TrainSpec, name, [], {})
    assert all(preset in str(caught.value) for preset in preset_names())


def test_a_file_goes_before_a_shipped_spec_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the working directory is what its name means."""
    (tmp_path / SPECS[0].stem).write_text("title: mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_spec(Drawing, SPECS[0].stem, [], {}).title == "mine"


def test_specs_are_frozen() -> None:
    """A spec cannot be changed after it was checked."""
    with pytest.raises(ValidationError):
        Drawing().title = "other"  # type: ignore[misc]


def test_shipped_specs_are_found_by_name() -> None:
    """Every file of jobs/specs is a shipped spec."""
    assert preset_names() == sorted(path.stem for path in SPECS)
    assert SPECS
    for path in SPECS:
        assert preset_path(path.stem) == path
    assert preset_path("no-such-spec") is None


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_is_right(path: Path) -> None:
    """It is a training spec, names its own command, and parses to the same spec by name and by path."""
    spec = load_spec(TrainSpec, str(path), [], {})
    assert spec == load_spec(TrainSpec, path.stem, [], {})
    assert f"genworker train {path.stem} --out " in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_survives_its_own_dump(path: Path) -> None:
    """What --dry-run prints is a spec again, the same one."""
    spec = load_spec(TrainSpec, str(path), [], {})
    again = TrainSpec.parse(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json"))), origin="dump")
    assert again == spec
    assert again.spec_id == spec.spec_id


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_comments_of_a_shipped_spec_name_real_keys(path: Path) -> None:
    """Dotted keys and keys in comments (`key:` or `key=`) are keys of the spec, so that uncommenting them works."""
    dump = TrainSpec.parse(yaml.safe_load(path.read_text(encoding="utf-8")), origin=str(path)).model_dump(mode="json")

    def keys_of(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for item in value.values() for key in keys_of(item)}
        return set()

    known = keys_of(dump) | {"image_size", "channels"}
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = line.partition("#")[2]
        for key in re.findall(r"(?:--set\s+)([\w.]+)=", comment) + re.findall(r"^\s*([a-z_]+):\s", comment):
            assert set(key.split(".")) <= known, (
                f"{path.name}: the comment {comment!r} names {key!r}, no key of the spec"
            )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=json_values)
def test_canonical_json_is_json(value: object) -> None:
    """Canonical text reads back as the same value, in one line, and gives itself again."""
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(value=st.dictionaries(st.text(), st.integers()), data=st.data())
def test_canonical_json_does_not_see_the_order_of_keys(value: dict[str, int], data: st.DataObject) -> None:
    """Mappings that are equal have equal text and equal digests, in whatever order they were filled."""
    shuffled = dict(data.draw(st.permutations(list(value.items()))))
    assert canonical_json(shuffled) == canonical_json(value)
    assert digest_of(shuffled) == digest_of(value)


def test_the_canonical_form_is_the_pinned_one() -> None:
    """The text and a digest, written down, because ids of datasets and runs are made of them."""
    value = {"b": [1, 2.5, None, True], "a": {"\u00fc": "x y"}}
    assert canonical_json(value) == '{"a":{"\u00fc":"x y"},"b":[1,2.5,null,true]}'
    assert digest_of(value) == "48ee50fe25366e79e13fb49b73627ed1aad0811e1fd7db953fbad08e2e3e43e7"
    assert Drawing().canonical() == canonical_json(Drawing().model_dump(mode="json"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": float("-inf")}])
def test_canonical_json_takes_no_infinities(value: object) -> None:
    """What JSON cannot hold is refused instead of written in a form that others cannot read."""
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("family.beta2=1.5", r"beta2 1.5: must lie in \[0, 1\)"),
        ("family.lr={start: 0.1, end: -0.1}", r"lr -0.1: must lie in \[0, inf\)"),
        ("family.ema_halflife_images=-5", r"ema_halflife_images -5: must lie in \[0, inf\)"),
        ("family.beta=.inf", "Input should be a finite number"),
    ],
)
def test_schedules_of_every_family_have_limits(change: str, message: str) -> None:
    """Not of GANs alone: a worker that cannot begin is started again and again."""
    with pytest.raises(UsageError, match=message):
        load_spec(TrainSpec, "fashion-vae-tiny", [change], {})


def test_a_spec_id_covers_the_result_and_nothing_else() -> None:
    """Workers, GPUs, report and checkpoint rhythm leave the id as it is; seed, data, family and length change it."""

    def spec_id(*overrides: str) -> str:
        return load_spec(TrainSpec, "fashion-vae-tiny", overrides, {}).spec_id

    for same in (
        "resources.workers=3",
        "resources.use_gpu=true",
        "training.report_every_images=1",
        "training.checkpoint_every_images=1",
        "training.keep_checkpoints=9",
        "training.callbacks=[]",
        "watchdog.max_rollbacks=0",
        "evaluation.num_samples=0",
    ):
        assert spec_id(same) == spec_id()
    changes = ("seed=1", "data.limit=5", "family.beta=2", "training.images=5", "training.batch_size=32")
    assert len({spec_id(), *(spec_id(change) for change in changes)}) == len(changes) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.micro_batch_size=24"], "training.batch_size 64 is no multiple of training.micro_batch_size 24"),
        (["family.pac=3", "family.conditional=false"], r"training.batch_size 64 is no multiple of 3, .* family.pac"),
        (["resources.workers=[3, 2]"], r"workers \[3, 2\]: write \[min, max\], min first"),
        (["resources.workers=[1, 80]"], r"training.batch_size 64 is smaller than resources.workers 80"),
        (["evaluation.metric=fid"], "no metric computes such a number; known: frechet"),
        (["evaluation.num_samples=5"], "metrics need at least 20; or 0, to train without evaluation"),
        (["watchdog.bands={d.sign: [0.9, 0.1]}"], r"bands d.sign \[0.9, 0.1\]: every value is outside"),
        (["resources.wait_seconds=.inf"], "key 'resources.wait_seconds' is inf: Input should be a finite number"),
        (["watchdog.bands={d.sign: [.nan, 1.0]}"], "is nan: Input should be a finite number"),
        (["family.lr=-0.1"], r"lr -0.1: must lie in \[0, inf\)"),
    ],
)
def test_batches_and_workers_that_do_not_fit_are_refused(changes: list[str], message: str) -> None:
    """A batch that does not divide, a range written backwards, an unknown number: one line with key, value and rule."""
    with pytest.raises(UsageError, match=message):
        load_spec(TrainSpec, "fashion-tiny", changes, {})


def test_more_workers_than_images_in_a_batch_are_refused() -> None:
    """The rule between two keys is told in one line, without the whole spec."""
    with pytest.raises(
        UsageError, match=r"^spec \S+: training.batch_size 2 is smaller than resources.workers 3"
    ) as caught:
        load_spec(TrainSpec, "fashion-tiny", ["training.batch_size=2"], {"resources.workers": 3})
    assert len(str(caught.value)) < 300


NESTED_ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + last] * 10)}]\n" for last, name in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NESTED_ALIASES + "size: *h", "is longer than 65536 characters, its aliases written out"),
        ("title: &a [*a]", "is longer than 65536 characters"),
        ("title: " + "x" * 70_000, "is longer than 65536 characters"),
        (f"size: [{'1, ' * 2_000}]", r"key 'size' is \[1, 1, 1, 1, 1, 1, \.\.\.\]: Input should be"),
        (f"size: {'x' * 50_000}", r"key 'size' is 'x+\.\.\.x+'"),
        ("\n".join(f"k{n}: 1" for n in range(1000)), "980 more keys are wrong"),
        (f"? {'k' * 50_000}\n: 1", r"unknown key 'k+\.\.\."),
        ("[" * 600, "is not YAML"),
        ("title: 2024-13-45", "is not YAML"),
        ("title: !!int ''", "is not YAML"),
        ("title: !!timestamp x", "is not YAML"),
        ("title: !!bool x", "is not YAML"),
        (f"title: 0x{'f' * 50_000}", "key 'title' is a int of very many digits"),
        ("title: " + "9" * 5000, "is not YAML"),
    ],
)
def test_a_hostile_file_takes_little_memory_and_a_short_message(text: str, message: str, tmp_path: Path) -> None:
    """A few hundred characters that stand for millions are refused, as a file and as a value of --set."""
    path = tmp_path / "drawing.yaml"
    path.write_text(text, encoding="utf-8")
    with growth() as grown, pytest.raises(UsageError, match=message) as caught:
        load_spec(Drawing, str(path), [], {})
    assert len(str(caught.value)) < 30_000
    assert grown.mib < 60
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_spec(Drawing, str(path), [f"size={{{text}}}" if text.startswith("title") else f"size={text}"], {})
    assert len(str(caught.value)) < 30_000


def test_aliases_may_be_used(file: Path) -> None:
    """What is said twice may be written once."""
    file.write_text("layers:\n  - &c {radius: 3}\n  - *c\n", encoding="utf-8")
    assert load_spec(Drawing, str(file), [], {}).layers == (Circle(radius=3), Circle(radius=3))


def test_what_is_left_without_wrong_values_is_no_second_fault() -> None:
    """A list of which every value is refused is not called too short besides; an empty one is."""
    with pytest.raises(UsageError) as caught:
        parse("widths: [1000, 2000]")
    assert [line.partition(": Input")[0] for line in str(caught.value).splitlines()] == [
        "spec x.yaml: key 'widths.0' is 1000",
        "spec x.yaml: key 'widths.1' is 2000",
    ]
    with pytest.raises(UsageError, match="at least 1 item"):
        parse("widths: []")
