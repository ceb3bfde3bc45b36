"""Rules and dashboard: every query parses and names metrics that genworker or Ray exports; every alert has its runbook."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

from genworker.bulk.metrics import EXPORT_PREFIX, METRICS
from genworker.bulk.stages import StageSeconds
from tests.infra.files import INFRA, ROOT, read_yaml

FOLDER = INFRA / "observability"
OURS = {EXPORT_PREFIX + metric.name: metric for metric in METRICS}
RULES: list[dict[str, Any]] = [rule for group in read_yaml(FOLDER / "rules.yaml")["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
# Grafana fills these in; they mean nothing to a parser of PromQL.
MACROS = {"$__rate_interval": "5m", "$session": ".*"}
# Of Ray: labels of the node that exports, and of runs of Ray Train.
RAY_LABELS = {"SessionName", "instance", "ray_train_run_name", "ray_train_controller_state"}


@functools.cache
def ray_metrics() -> set[str]:
    """The metrics that Ray's own dashboards show, read from the installed Ray."""
    from ray.dashboard.modules.metrics import dashboards

    text = "".join(path.read_text(encoding="utf-8") for path in Path(*dashboards.__path__).glob("*_panels.py"))
    return set(re.findall(r"\bray_[a-z0-9_]+(?=\{)", text))


def queries() -> list[tuple[str, str]]:
    """All queries with a name for messages."""
    found = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for macro, value in MACROS.items():
                expression = expression.replace(macro, value)
            found.append((f"panel {panel['title']}", expression))
    return found


def selectors(expression: str) -> list[tuple[Any, bool]]:
    """The vector selectors of a query, each with whether a range of it is taken."""
    found: list[tuple[Any, bool]] = []
    inside_range = []

    def visit(node: Any) -> None:
        if isinstance(node, promql.MatrixSelector):
            inside_range.append(node)
        elif isinstance(node, promql.VectorSelector):
            # The one selector of a range is visited right after the range.
            found.append((node, bool(inside_range)))
            inside_range.clear()

    promql.walk(promql.parse(expression), visit)
    return found


@pytest.mark.parametrize(("name", "expression"), queries(), ids=lambda text: text[:40])
def test_queries_name_what_is_exported(name: str, expression: str) -> None:
    """Metrics are of our table, of Ray's, or recorded by a rule; counters are read by rate, and stages are real ones."""
    known = ray_metrics()
    used = selectors(expression)
    assert used, name
    for selector, ranged in used:
        if selector.name in RECORDED:
            continue
        assert selector.name in OURS or selector.name in known, f"{name}: nobody exports {selector.name}"
        if selector.name in OURS:
            metric = OURS[selector.name]
            assert ranged is (metric.kind == "counter") or "max_over_time" in expression, f"{name}: {selector.name}"
        labels = {matcher.name for matcher in selector.matchers.matchers}
        allowed = RAY_LABELS | set(OURS[selector.name].tags if selector.name in OURS else ())
        assert labels <= allowed, f"{name}: {selector.name} has no label {labels - allowed}"
        for matcher in selector.matchers.matchers:
            if matcher.name == "stage":
                assert matcher.value in {field.name for field in fields(StageSeconds)}


def test_ray_still_has_its_metrics() -> None:
    """The list that queries are compared with is one, and has no name of ours."""
    found = ray_metrics()
    assert {"ray_node_gpus_utilization", "ray_train_controller_state", "ray_node_mem_used"} <= found
    assert not [name for name in found if name.startswith("ray_genworker_")]


def test_a_wrong_name_would_be_found() -> None:
    with pytest.raises(AssertionError, match="nobody exports ray_genworker_sample_total"):
        test_queries_name_what_is_exported("a typo", "rate(ray_genworker_sample_total[5m])")
    with pytest.raises(AssertionError, match="has no label"):
        test_queries_name_what_is_exported("a label", 'rate(ray_genworker_samples_total{shard="3"}[5m])')


def test_every_metric_of_ours_is_shown() -> None:
    """What the code counts is on the dashboard."""
    shown = {s.name for name, text in queries() if name.startswith("panel") for s, _ in selectors(text)}
    assert shown >= OURS.keys()


def test_every_alert_has_a_section_in_the_readme() -> None:
    """`runbook_url` leads to a heading of the README, and the section says something to do."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^#### (Genworker\w+)\n\n(.+?)(?=\n\n)", readme, re.MULTILINE | re.DOTALL))
    assert {alert["alert"] for alert in ALERTS} == sections.keys()
    for alert in ALERTS:
        assert alert["annotations"]["runbook_url"] == f"README.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert len(sections[alert["alert"]]) > 80


def test_panels_lie_beside_each_other() -> None:
    """Ids differ, no two panels overlap, and each has a query and a unit."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["fieldConfig"]["defaults"]["unit"]
