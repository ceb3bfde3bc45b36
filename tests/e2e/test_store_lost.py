"""A bucket that cannot be reached any more in mid-run: training asks again for a while, then stops and names its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from genworker.errors import StoreError, TrainingError
from genworker.stores import open_store
from genworker.training import checkpoint, loop
from genworker.training.hooks import Hooks
from tests.fakes import models
from tests.servers import moto_server, stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import S3Server

pytestmark = pytest.mark.slow


def test_a_run_whose_bucket_is_gone_ends_with_the_last_checkpoint_named(
    point_at: Callable[[S3Server], None], tmp_path: Path
) -> None:
    """The server ends after the first checkpoint: the run is told once, tries for its patience, and names what is whole."""
    spec = models.train_spec(
        images=100_000, report_every_images=16, checkpoint_every_images=16, store_patience_seconds=3.0
    )
    events, stored = list[str](), list[str]()
    with moto_server(tmp_path) as server:
        point_at(server)
        store = open_store(f"s3://{server.new_bucket()}/run")

        def on_checkpoint(key: str) -> None:
            stored.append(key)
            stop(server.process)

        hooks = Hooks(on_event=events.append, on_checkpoint=on_checkpoint)
        with pytest.raises((TrainingError, StoreError)) as caught:
            loop.train(
                spec, models.shipped_source(), store, rank=0, world_size=1, device=torch.device("cpu"), hooks=hooks
            )
    assert stored == [checkpoint.key_of(16)]
    assert f"the last whole one is {stored[0]}" in str(caught.value)
    assert any("is tried again for 3 s" in event for event in events)
