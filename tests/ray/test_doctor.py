"""The doctor's questions to the nodes of a real cluster."""

from __future__ import annotations

import os

import pytest

import genworker
from genworker.doctor import nodes

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_node_that_runs_what_this_machine_runs() -> None:
    (finding,) = nodes.check_nodes()
    assert (finding.name, finding.verdict) == ("nodes", "ok")
    assert f"genworker {genworker.__version__}" in finding.seen


def test_a_node_that_cannot_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, as where it has no genworker."""
    driver = os.getpid()

    def only_here() -> dict[str, str]:
        if os.getpid() != driver:
            raise ModuleNotFoundError("No module named 'genworker'")
        return {}

    monkeypatch.setattr(nodes, "software", only_here)
    (finding,) = nodes.check_nodes()
    assert (finding.name, finding.verdict) == ("nodes", "fail")
    assert "No module named 'genworker'" in finding.seen
