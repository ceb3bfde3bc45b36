"""A training run on one page of HTML that needs nothing else: no network, no script, no file beside it.

In: a `Run` and its store, which the pictures come from. Out: the page as text. Everything that was read from the store is made
printable and escaped; curves and pictures are inside as data.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2
import yaml

import genworker
from genworker.config import flattened
from genworker.errors import ObjectMissingError
from genworker.printable import printable
from genworker.report import curves, names
from genworker.report.run import Run
from genworker.stores.base import Store

MAX_PICTURES = 12
MAX_ALARMS = 200


def render(run: Run, store: Store) -> str:
    """The page of a run; ``store`` is the one that ``run`` was read from, opened at the run's own URL."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("genworker.report"),
        autoescape=True,
        finalize=lambda value: printable(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": names.number, "duration": names.duration, "value": _plain}
    drawn = [
        {
            "section": c.section,
            "title": c.title,
            "note": c.note,
            "text": c.text,
            "data": _data_url(c.svg, "image/svg+xml"),
        }
        for c in curves.draw(run)
    ]
    best = run.best_evaluation
    return environment.get_template("run.html.j2").render(
        run=run,
        verdict=run.state,
        explanation=explain(run),
        share=min(1.0, run.images_seen / run.planned_images) if run.planned_images else 0.0,
        tiles=_tiles(run),
        sections=[(title, list(group)) for title, group in itertools.groupby(drawn, lambda curve: curve["section"])],
        pictures=list(_pictures(run, store)),
        num_pictures=len(run.pictures),
        alarms=list(run.alarms)[-MAX_ALARMS:],
        metric_names=list(dict.fromkeys(name for line in run.evaluations for name in line["metrics"])),
        floor=next((line["floor"] for line in reversed(run.evaluations) if isinstance(line.get("floor"), dict)), {}),
        best_images=None if best is None else best["images_seen"],
        cards=_cards(run),
        spec=yaml.safe_dump(run.spec, sort_keys=False, allow_unicode=True, default_flow_style=None) if run.spec else "",
        lineage=_lineage(run),
        counts=names.COUNTS,
        warnings={*names.COUNTS.values(), "alarms"},
        version=genworker.__version__,
        read_at=_time(run.now),
    )


def explain(run: Run) -> str:
    """What the state of a run means, in a sentence."""
    quiet = names.duration(run.quiet_seconds)
    if run.state == "finished":
        return "All images were seen, and the bundle is there."
    if run.state == "diverged":
        return "The watchdog gave up; the alarms say why. Change the spec and train into another URL."
    if run.state == "running":
        where = f"Last written {quiet} ago." if run.reports else f"No report is stored yet; begun {quiet} ago or less."
        return f"{where} Reports are stored with each checkpoint."
    return f"Nothing was written for {quiet}. Run the same command again to go on."


def _tiles(run: Run) -> list[tuple[str, str]]:
    """The numbers that stand for the run: name, value; what is wrong comes last."""
    report = run.last_report
    tiles = []
    if report.get("images_per_second") is not None:
        tiles.append(("images/s", names.number(report["images_per_second"])))
    if run.training_seconds:
        tiles.append(("training time", names.duration(run.training_seconds)))
    best = run.best_evaluation
    if best is not None:
        tiles.append((f"best {run.metric}", names.number(best["metrics"][run.metric])))
    tiles += list(names.headlines(report).items())
    if run.alarms:
        tiles.append(("alarms", f"{len(run.alarms):,}"))
    return tiles


def _pictures(run: Run, store: Store) -> Iterator[dict[str, Any]]:
    """Evenly spread pictures, the first and the last among them, oldest first."""
    order = sorted(run.pictures)
    if len(order) > MAX_PICTURES:
        order = [order[round(i * (len(order) - 1) / (MAX_PICTURES - 1))] for i in range(MAX_PICTURES)]
    for images in order:
        try:
            yield {"images_seen": images, "data": _data_url(store.get(run.pictures[images]), "image/png")}
        except ObjectMissingError:
            continue


def _cards(run: Run) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The cards of the newest evaluation by metric, nested entries as ``settings.k``; first, as ``all``, what all share."""
    newest: Mapping[str, Any] = next(
        (x["cards"] for x in reversed(run.evaluations) if isinstance(x.get("cards"), dict)), {}
    )
    cards = {name: dict(flattened(card)) for name, card in newest.items() if isinstance(card, dict)}
    for name, card in cards.items():
        if card.get("metric") == name:
            del card["metric"]
    shared: dict[str, Any] = dict(next(iter(cards.values()), {})) if len(cards) > 1 else {}
    for card in cards.values():
        shared = {key: value for key, value in shared.items() if key in card and card[key] == value}
    rows = [(name, [(key, value) for key, value in card.items() if key not in shared]) for name, card in cards.items()]
    return [("all", list(shared.items())), *rows] if shared else rows


def _lineage(run: Run) -> list[tuple[str, Any]]:
    """Where the model comes from and what it has become; only what is known."""
    data = run.spec.get("data") if isinstance(run.spec.get("data"), dict) else {}
    assert isinstance(data, dict)
    rows: list[tuple[str, Any]] = [("run", run.url)]
    if run.bundle is None:
        rows.append(("source", " ".join(str(part) for part in (data.get("name"), data.get("url")) if part)))
    else:
        lineage = run.bundle.lineage
        rows += [
            ("source", lineage.source),
            ("source digest", lineage.source_digest),
            ("samples", run.bundle.image_schema.describe()),
            ("bundle digest", run.bundle.digest),
            ("weights", f"{run.bundle.weights_bytes:,} bytes, SHA-256 {run.bundle.weights_sha256}"),
            ("bundle made", lineage.created),
            *((f"version of {name}", version) for name, version in lineage.versions.items()),
        ]
    if run.checkpoints:
        rows.append(("checkpoints kept", ", ".join(f"{images:,}" for images in run.checkpoints)))
    return [(name, value) for name, value in rows if value]


def _plain(value: Any) -> str:
    """A value of a JSON file as text in a table."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return names.number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
