"""What a run that ended with an error tells about going on."""

from __future__ import annotations

import pytest

from genworker.errors import DivergedError, GenworkerError, SourceError, StoreAccessError, StoreError
from genworker.training.trainer import _with_last_checkpoint

KEY = "checkpoints/images-000000000640.safetensors"


@pytest.mark.parametrize("kind", [SourceError, StoreError, StoreAccessError])
def test_an_error_of_the_storage_names_the_checkpoint_to_go_on_from(kind: type[GenworkerError]) -> None:
    """A bucket that is gone costs no more than what came after the newest checkpoint, and the error says which that is."""
    error = _with_last_checkpoint(kind, "s3://data: no such bucket", KEY)
    assert type(error) is kind
    assert (
        str(error)
        == f"s3://data: no such bucket; the newest checkpoint is {KEY}: run the same command again to go on from there"
    )


@pytest.mark.parametrize(("kind", "last"), [(SourceError, None), (DivergedError, KEY)])
def test_other_errors_are_told_as_they_are(kind: type[GenworkerError], last: str | None) -> None:
    """Before the first checkpoint there is none to name, and a run that diverged would diverge again."""
    error = _with_last_checkpoint(kind, "it ended", last)
    assert (type(error), str(error)) == (kind, "it ended")
