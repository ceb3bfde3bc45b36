"""A run that diverges goes back to its last good checkpoint with another seed, a few times, and then stops and says why."""

from __future__ import annotations

import json
import math
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import torch

from genworker import bundle as bundles
from genworker import families
from genworker.errors import TrainingError
from genworker.families.base import Band, Losses
from genworker.metrics.cards import Measured
from genworker.stores import open_store
from genworker.training import best, checkpoint, loop, record, step
from genworker.training.hooks import Hooks
from genworker.training.spec import TrainSpec
from tests.fakes import models

if TYPE_CHECKING:
    from genworker.stores import Store

CPU = torch.device("cpu")


def explode_from(monkeypatch: pytest.MonkeyPatch, progress: float, times: int) -> list[int]:
    """Make the VAE's loss infinite from ``progress`` on, in the first ``times`` attempts; returns the seeds seen there."""
    vae = families.get("vae")
    phases = vae.phases
    seeds: list[int] = []

    def with_a_cliff(self: Any) -> Any:
        (phase, *rest) = phases(self)

        def loss(networks: Any, batch: Any, ctx: Any) -> Losses:
            losses = phase.loss(networks, batch, ctx)
            if ctx.progress >= progress:
                if ctx.seed not in seeds:
                    seeds.append(ctx.seed)
                if seeds.index(ctx.seed) < times:
                    losses["loss"] = losses["loss"] * math.inf
            return losses

        return (families.base.Phase(**{**vars(phase), "loss": loss}), *rest)

    monkeypatch.setattr(vae, "phases", with_a_cliff)
    return seeds


def run(spec: TrainSpec) -> tuple[Store, list[str]]:
    store, events = open_store(f"memory://{uuid.uuid4().hex}"), list[str]()
    hooks = Hooks(on_event=events.append)
    try:
        loop.train(spec, models.shipped_source(), store, rank=0, world_size=1, device=CPU, hooks=hooks)
    except TrainingError as err:
        events.append(f"error: {err}")
    return store, events


def spec_of(**watchdog: Any) -> TrainSpec:
    values = models.train_spec(images=96, report_every_images=8, checkpoint_every_images=16, keep_checkpoints=9)
    # Networks this small have collapsed from the start, and steps this short may take many times as long as others on a
    # busy machine; neither is what is tested here.
    quiet = {"bands": {"information_share": (None, None), "active_units": (None, None)}, "min_speed_share": 1e-6}
    limits = {"max_nonfinite_steps": 1, "max_rollbacks": 2} | quiet | watchdog
    return type(values).parse(values.model_dump(mode="json") | {"watchdog": limits}, origin="test")


def test_a_rollback_ends_in_a_finished_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cliff that another seed avoids: one rollback to the last checkpoint made in health, then the end."""
    seeds = explode_from(monkeypatch, progress=0.5, times=1)
    store, events = run(spec_of())
    assert seeds == [0, step.run_seed(0, 1)]
    snapshot = checkpoint.read(store, checkpoint.keys(store)[0])
    assert (snapshot.counters["images_seen"], snapshot.counters["rollbacks"]) == (96, 1)
    assert all(torch.isfinite(tensor).all() for tensor in snapshot.tensors.values())
    assert any("rollback 1 of 2 goes back to the checkpoint of image 48" in event for event in events)


def test_nothing_of_a_rollback_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alarms stay in the run, the reports that were taken back are set aside, and the rest reads without a gap."""
    explode_from(monkeypatch, progress=0.5, times=1)
    store, _ = run(spec_of())
    kinds = [line["kind"] for line in record.read_lines(store, record.ALARMS_KEY)]
    assert kinds[:3] == ["nonfinite_steps", "nonfinite_steps", "rollback"]
    reports = record.read_metrics(store)
    assert [line["images_seen"] for line in reports] == list(range(8, 97, 8))
    assert [line["rollbacks"] for line in reports] == [0] * 6 + [1] * 6
    aside = record.read_lines(store, "diverged/metrics-1.jsonl")
    assert max(line["images_seen"] for line in aside) > 48


def test_a_second_divergence_goes_further_back_and_the_third_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that did not prove good is not tried twice; after the last rollback the error says what was seen."""
    explode_from(monkeypatch, progress=0.5, times=9)
    store, events = run(spec_of())
    backs = [event for event in events if "goes back to" in event]
    assert "the checkpoint of image 48" in backs[0]
    assert "the checkpoint of image 32" in backs[1]
    assert len(backs) == 2
    assert "after 2 rollbacks (watchdog.max_rollbacks 2)" in events[-1]
    assert "the last good checkpoint is checkpoints/images-" in events[-1]
    assert "steps had a non-finite loss or gradient" in events[-1]
    assert record.read_lines(store, record.ALARMS_KEY)[-1]["kind"] == "gave_up"
    assert not any(info.key.startswith(record.BUNDLE_PREFIX) for info in store.list())


def test_best_is_of_what_a_rollback_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of the stretch that was taken back are gone, and best/ holds the best of the others, or nothing."""
    explode_from(monkeypatch, progress=0.5, times=2)
    spec, source, seen = spec_of(), models.shipped_source(), list[list[int]]()
    store = open_store(f"memory://{uuid.uuid4().hex}")

    def measure(key: str) -> None:
        """An evaluation by which later is better, and after the last rollback nothing is."""
        images = checkpoint.images_of(key)
        snapshot = checkpoint.read(store, key)
        value = -images if snapshot.counters["rollbacks"] < 2 else 0
        line = {"images_seen": images, "metrics": {"frechet": value}}
        store.put(record.evaluation_key(images), json.dumps(line).encode(), overwrite=True)
        if best.best_of(store, spec)[0] == images:
            best.averaged(snapshot, key, spec, source.schema)[0].save(store, record.BEST_PREFIX)
        seen.append([bundles.load_info(store, record.BEST_PREFIX).lineage.images_seen, images])

    loop.train(spec, source, store, rank=0, world_size=1, device=CPU, hooks=Hooks(on_checkpoint=measure))
    assert [48, 48] in seen  # the best, until the second rollback goes back to before it
    assert seen[-1] == [32, 96]
    lineage = bundles.load_info(store, record.BEST_PREFIX).lineage
    assert lineage.evaluation == Measured(images_seen=32, metrics={"frechet": -32})
    assert [line["images_seen"] for line in record.read_lines(store, record.ROLLBACKS_KEY)] == [48, 32]
    assert record.was_taken_back(store, 48, rollbacks=1)
    assert not record.was_taken_back(store, 48, rollbacks=2)
    for line in record.read_evaluations(store):
        store.delete(record.evaluation_key(line["images_seen"]))
    best.take_best_back(store, spec, source.schema, 0)
    assert not list(store.list(record.BEST_PREFIX))


def test_without_a_good_checkpoint_a_run_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that diverges before its first checkpoint begins again from the spec's own weights, with another seed."""
    explode_from(monkeypatch, progress=0.0, times=1)
    store, events = run(spec_of())
    assert any("goes back to the start" in event for event in events)
    assert checkpoint.read(store, checkpoint.keys(store)[0]).counters["images_seen"] == 96


def test_a_rollback_lowers_the_learning_rate_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate after n rollbacks is the schedule's times rollback_lr_scale ** n."""
    explode_from(monkeypatch, progress=0.5, times=1)
    made: list[step.Trainer] = []
    monkeypatch.setattr(loop, "Trainer", lambda *args: made.append(step.Trainer(*args)) or made[-1])
    run(spec_of(rollback_lr_scale=0.25))
    (trainer,) = made
    last = 1 - 8 / 96
    (group,) = trainer.optimizers["elbo"].param_groups
    assert group["lr"] == pytest.approx(0.25 * trainer.spec.family.lr.at(last))


def test_a_band_of_the_family_can_roll_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric whose band means divergence sends the run back as well."""
    band = Band("elbo.nll", None, 0.0, "it cannot be so low", action="rollback", from_progress=0.9)
    monkeypatch.setattr(families.get("vae"), "bands", lambda _self: (band,))
    _, events = run(spec_of(patience=1, max_rollbacks=0))
    assert "elbo.nll is" in events[-1]
    assert "it cannot be so low" in events[-1]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_place_to_go_back_to_outlives_the_checkpoints_after_it(monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    """However few are kept: a divergence is seen some checkpoints late, and a second one has somewhere to go, too."""
    explode_from(monkeypatch, progress=0.5, times=2)
    values = spec_of(max_nonfinite_steps=4).model_dump(mode="json")
    values["training"] |= {"checkpoint_every_images": 8, "keep_checkpoints": keep}
    store, events = run(TrainSpec.model_validate(values))
    backs = [event.partition("goes back to ")[2].partition(",")[0] for event in events if "goes back to" in event]
    assert backs == ["the checkpoint of image 48", f"the checkpoint of image {48 if keep == 1 else 40}"]
    assert checkpoint.read(store, checkpoint.keys(store)[0]).counters["images_seen"] == 96


def test_single_steps_that_are_not_finite_are_skipped_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their losses are in no report, so that three of them are no divergence; where a report has no other, it has no number."""
    vae = families.get("vae")
    phases = vae.phases

    def with_holes(self: Any) -> Any:
        (phase, *rest) = phases(self)

        def loss(networks: Any, batch: Any, ctx: Any) -> Losses:
            losses = phase.loss(networks, batch, ctx)
            step_index = round(ctx.progress * 12)
            bad = step_index % 2 == 1 or step_index >= 10
            return {name: value * math.nan for name, value in losses.items()} if bad else losses

        return (families.base.Phase(**{**vars(phase), "loss": loss}), *rest)

    monkeypatch.setattr(vae, "phases", with_holes)
    values = spec_of(max_nonfinite_steps=20).model_dump(mode="json")
    values["training"] |= {"report_every_images": 16}
    store, events = run(TrainSpec.model_validate(values))
    assert not any("goes back" in event for event in events)
    reports = record.read_metrics(store)
    assert [math.isfinite(line["elbo.negative_elbo"]) for line in reports] == [True] * 5 + [False]
    assert reports[-1]["nonfinite_steps"] == 7
