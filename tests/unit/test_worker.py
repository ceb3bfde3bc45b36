"""Nodes that will go away: Ray is asked every few seconds, by all ranks together, and what it says is told once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray.train

from genworker.training import worker


def test_ray_is_asked_every_few_seconds_until_it_says_that_nodes_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 alone says when; after the notice, which every rank sees, nothing more is asked for."""
    now, answers, told = [100.0], [None, SimpleNamespace(preempted_node_ids=["a" * 30])], list[str]()
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: answers.pop(0))
    first, other = worker.Notices(0, told.append), worker.Notices(1, lambda _text: None)
    assert not first.due()
    for seen in (False, True):
        now[0] += 4.9
        assert not first.due()
        now[0] += 0.2
        assert (first.due(), other.due()) == (True, False)
        first.ask()
        assert not first.due()
        assert first.seen == seen
    now[0] += 100
    assert not first.due()
    first.ask()  # at a report; there is no third answer
    assert told == ["nodes aaaaaaaaaaaa will go away: saving, and going on without them"]
