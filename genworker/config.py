"""Specs: frozen pydantic models, read from YAML, overridden from the command line, refused when a key is unknown.

Layers, later ones win: defaults < YAML file < ``--set key=value`` < flags. This module holds the base class and the
layering; each spec is defined beside the thing that it configures. It never touches the network.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genworker.errors import UsageError
from genworker.registry import nearest
from genworker.yaml_text import read_mapping, read_value

# Of values in messages: a message is read by people, and a spec may come from anybody.
_MAX_PROBLEMS, _MAX_LINE = 20, 1000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


class Spec(BaseModel):
    """Base of all specs: immutable, and a key that nobody defined or a number that is not finite is an error."""

    # Specs are stored as JSON, which has no word for infinity.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    presets: ClassVar[str] = ""
    """The folder below jobs/specs where shipped specs of this class lie."""

    def canonical(self) -> str:
        """The spec as JSON with sorted keys and no spaces: equal specs give equal text."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def read(cls, text: bytes) -> Self:
        """Parse stored JSON. Raises pydantic's ValidationError."""
        return cls.model_validate_json(text)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str) -> Self:
        """Validate ``values``.

        Raises:
            UsageError: one line per wrong key: where, what was seen, the rule, and the nearest known key.
        """
        try:
            spec = cls.model_validate(values)
        except ValidationError as err:
            raise UsageError(_explain(err, cls, values, origin)) from err
        # To pydantic a switch is the number 1 or 0; whoever writes one where a number belongs meant something else.
        if wrong := list(_misplaced_switches(values, spec.model_dump(), ())):
            raise UsageError(
                "\n".join(f"{origin}: key {key!r} is {seen}: it has to be a number" for key, seen in wrong)
            )
        return spec


SpecT = TypeVar("SpecT", bound=Spec)


def union_by_name(classes: Iterable[type[Spec]]) -> Any:
    """The type of a field that holds one of several specs, told apart by ``name``: errors name the right one's keys."""
    return Annotated[reduce(or_, classes), Field(discriminator="name")]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, the text that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def flattened(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of a nested mapping, each under its dotted name such as ``family.lr.start``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def first_problem(err: ValidationError) -> str:
    """The first thing that is wrong with stored values, with its key where it is one key's, in a line."""
    loc, rule = problems(err)[0]
    key = ".".join(str(part) for part in loc)
    return f"{key}: {rule}" if key else rule


def problems(err: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    """Where something is wrong with stored values, and the rule for it."""
    return [(error["loc"], _rule(error["msg"])) for error in err.errors()]


def _rule(message: str) -> str:
    """What pydantic says of a rule of our own, in our words alone."""
    return message.removeprefix("Value error, ")


def find_spec(path_or_preset: str, kind: str = "") -> Path | None:
    """The file of that name, else the shipped spec of ``kind`` called so, else None."""
    path = Path(path_or_preset)
    return path if path.is_file() else preset_path(path_or_preset, kind)


def preset_path(name: str, kind: str = "") -> Path | None:
    """The shipped spec called ``name`` (without ``.yaml``), or None; lists come from `preset_names`."""
    for folder in _PRESET_FOLDERS:
        if (path := folder / kind / f"{name}.yaml").is_file():
            return path
    return None


def preset_names(kind: str = "") -> list[str]:
    """Names of the specs that ship with genworker: those to train with, or those of ``kind``, a folder below them."""
    return sorted({path.stem for folder in _PRESET_FOLDERS for path in (folder / kind).glob("*.yaml")})


# Installed, the specs of jobs/specs lie inside the package; in a checkout they are read where they are edited.
_PRESET_FOLDERS = (Path(__file__).parent / "presets", Path(__file__).parent.parent / "jobs" / "specs")


def load_spec(
    cls: type[SpecT],
    path_or_preset: str,
    overrides: Sequence[str],
    flags: Mapping[str, Any],
    fill_in: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> SpecT:
    """Read a YAML file (or a shipped preset, by name), apply ``key.path=value`` overrides, then flags that are not None.

    ``fill_in`` is given all values before they are checked, and returns those to check.

    Raises:
        UsageError: there is no such file or preset, it is not YAML, or a key or value is wrong.
    """
    path = find_spec(path_or_preset, cls.presets)
    if path is None:
        raise UsageError(
            f"spec {path_or_preset!r}: there is no such file, and no shipped spec has that name; "
            f"give a YAML file or one of: {', '.join(preset_names(cls.presets))}"
        )
    values = read_mapping(path)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {override!r}: write it as key=value, for example --set training.batch_size=128")
        # To YAML a template without quotes would be a mapping within a mapping.
        is_template = text.lstrip().startswith("{{")
        value = text if is_template else read_value(text, f"--set {_shown(override)}: the value")
        _assign(values, key.split("."), value, override)
    for key, value in flags.items():
        if value is not None:
            _assign(values, key.split("."), value, key)
    return cls.parse(fill_in(values), origin=f"spec {path}")


def _assign(values: dict[str, Any], path: list[str], value: Any, origin: str) -> None:
    for step in path[:-1]:
        values = values.setdefault(step, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {origin!r}: {step!r} holds a plain value, so it has no key below it")
    values[path[-1]] = value


def _explain(err: ValidationError, cls: type[BaseModel], values: Mapping[str, Any], origin: str) -> str:
    lines = []
    problems_found = err.errors()
    for problem in problems_found[:_MAX_PROBLEMS]:
        loc, kind, seen = problem["loc"], problem["type"], problem["input"]
        if kind == "too_short" and any(other["loc"][: len(loc)] == loc != other["loc"] for other in problems_found):
            continue  # what is too short is what is left without the values that are told of beside
        key = _key_in(values, loc, also_last=kind in {"extra_forbidden", "missing"})
        rule = _rule(problem["msg"])
        if kind == "extra_forbidden":
            known = _known_keys(cls, [str(part) for part in loc[:-1]])
            hint = nearest(str(loc[-1]), known) or f"; known keys: {', '.join(sorted(known))}"
            lines.append(f"{origin}: unknown key {key!r}{hint}")
        elif kind == "missing" and isinstance(loc[-1], int):
            lines.append(
                f"{origin}: key {_key_in(values, loc[:-1], also_last=False)!r} is {_shown(seen)}: a value is missing"
            )
        elif kind == "missing":
            lines.append(f"{origin}: key {key!r} is missing")
        elif kind == "union_tag_not_found":
            lines.append(f"{origin}: key '{key}.name' is missing")
        elif kind == "union_tag_invalid":
            lines.append(
                f"{origin}: key '{key}.name' is {_shown(seen['name'])}; known: {problem['ctx']['expected_tags']}"
            )
        elif isinstance(seen, Mapping):  # a rule over several keys; its message shows their values
            lines.append(f"{origin}: key {key!r}: {rule}" if key else f"{origin}: {rule}")
        elif kind in {"model_type", "model_attributes_type"}:
            keys = ", ".join(sorted(_known_keys(cls, [str(part) for part in loc])))
            lines.append(f"{origin}: key {key!r} is {_shown(seen)}: it may be a mapping of {keys}")
        else:
            lines.append(f"{origin}: key {key!r} is {_shown(seen)}: {rule}")
    if (more := err.error_count() - _MAX_PROBLEMS) > 0:
        lines.append(f"{origin}: {more} more keys are wrong")
    return "\n".join(line if len(line) <= _MAX_LINE else line[:_MAX_LINE] + "..." for line in lines)


def _misplaced_switches(written: Any, taken: Any, path: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Where a spec says true or false and got a number; as far as it was taken as it was written."""
    if isinstance(written, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        yield ".".join(path), written
    elif isinstance(written, Mapping) and isinstance(taken, Mapping):
        for key in written.keys() & taken.keys():
            yield from _misplaced_switches(written[key], taken[key], (*path, str(key)))
    elif isinstance(written, list | tuple) and isinstance(taken, list | tuple):
        for index, pair in enumerate(zip(written, taken, strict=False)):
            yield from _misplaced_switches(*pair, (*path, str(index)))


def _shown(value: Any) -> str:
    """A value in a message, cut to what a person reads."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write out a number of thousands of digits
        return f"a {type(value).__name__} of very many digits"


def _key_in(values: Any, loc: Sequence[int | str], *, also_last: bool) -> str:
    """The key that the user wrote: ``loc`` without what pydantic adds (which member of a union it tried)."""
    parts = []
    for position, part in enumerate(loc):
        is_there = (isinstance(values, Mapping) and part in values) or (
            isinstance(values, Sequence) and not isinstance(values, str) and part in range(len(values))
        )
        if is_there or (also_last and position == len(loc) - 1):
            parts.append(str(part))
        if is_there:
            values = values[part]
    return ".".join(parts)


def _known_keys(cls: type[BaseModel], path: Sequence[str]) -> set[str]:
    """Keys that a mapping at ``path`` below ``cls`` may hold; a step that is no field is the tag of a union member."""
    models: list[type[BaseModel]] = [cls]
    for step in path:
        fields = [model.model_fields[step].annotation for model in models if step in model.model_fields]
        if fields:
            models = [model for field in fields for model in _models_in(field)]
        else:
            models = [
                m for m in models if "name" in m.model_fields and m.model_fields["name"].default == step
            ] or models
    return {key for model in models for key in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in getattr(annotation, "__args__", ()) for model in _models_in(arg)]
