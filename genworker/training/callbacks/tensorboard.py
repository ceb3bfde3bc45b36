"""TensorBoard event files in the run's store, below ``tensorboard/``.

In: reports, pictures, evaluations, alarms. Out: scalars, one histogram per list, images and text, by images seen. Events are
written to a temporary folder and put into the store at every flush, so that a run on S3 has them too. A run that goes on from a
checkpoint begins a new file, which tells TensorBoard to forget what was drawn beyond that point.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from genworker.training.pictures import png_bytes

if TYPE_CHECKING:
    from genworker.schema import Pixels
    from genworker.stores.base import Store
    from genworker.training.callbacks.base import Values
    from genworker.training.spec import TrainSpec

PREFIX = "tensorboard/"
# A larger file is followed by a new one: every flush puts the whole current file.
_MAX_FILE_BYTES = 8 * 2**20
_HISTOGRAM_BINS = 30


class TensorBoard:
    """See the module, and `genworker.training.callbacks.base.Callback`."""

    def __init__(self, store: Store, spec: TrainSpec, images_seen: int) -> None:
        self._store = store
        self._num_files = sum(1 for _ in store.list(PREFIX))
        self._folder = tempfile.TemporaryDirectory(prefix="genworker-tensorboard-")
        self._last_step = images_seen
        self._pictures: set[int] = set()
        resumed = self._num_files > 0
        self._open()
        if resumed:
            self._forget_from(images_seen + 1)
        else:
            text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
            self._write(summary.text("spec", f"```\n{text}\n```"), images_seen)

    def on_report(self, metrics: Values) -> None:
        """Write one scalar per number, and one histogram per list of numbers."""
        step = int(metrics["images_seen"])  # type: ignore[arg-type]
        self._go_back_before(step)
        self._last_step = step
        for name, value in metrics.items():
            if name != "images_seen":
                self._write_value(_tag(name), value, step)

    def on_picture(self, images_seen: int, pixels: Pixels) -> None:
        """Write an image; the one that a rollback draws again at its checkpoint is there already."""
        self._go_back_before(images_seen + 1)
        if images_seen in self._pictures:
            return
        self._pictures.add(images_seen)
        height, width, channels = pixels.shape
        picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png_bytes(pixels))
        self._write(Summary(value=[Summary.Value(tag="samples", image=picture)]), images_seen)

    def on_evaluation(self, images_seen: int, metrics: Values) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._write_value(f"evaluation/{name}", value, images_seen)

    def on_alarm(self, images_seen: int, text: str) -> None:
        """Write a line of text."""
        self._write(summary.text("alarms", text), images_seen)

    def flush(self) -> None:
        """Put the current event file into the store."""
        self._writer.flush()
        data = self._path.read_bytes()
        self._store.put(PREFIX + self._path.name, data, overwrite=True)
        if len(data) > _MAX_FILE_BYTES:
            self._writer.close()
            self._path.unlink()
            self._open()

    def close(self) -> None:
        """Put the current event file into the store and remove the temporary folder."""
        try:
            self.flush()
        finally:
            self._writer.close()
            self._folder.cleanup()

    def _open(self) -> None:
        # TensorBoard reads files in the order of their names. These begin with the time in seconds; the number decides
        # between two of one second.
        self._writer = EventsWriter(f"{self._folder.name}/events", f".{self._num_files:05d}")
        (self._path,) = Path(self._folder.name).iterdir()
        self._num_files += 1

    def _go_back_before(self, step: int) -> None:
        """Forget what was written at ``step`` or later, if anything: the run went back to an earlier checkpoint."""
        if step <= self._last_step:
            self._forget_from(step)
            self._last_step = step - 1
            self._pictures = {images for images in self._pictures if images < step}

    def _forget_from(self, step: int) -> None:
        """Make TensorBoard drop everything that was written before at ``step`` or later."""
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=start))

    def _write_value(self, tag: str, value: float | list[float] | None, step: int) -> None:
        if isinstance(value, list):
            finite = np.array([item for item in value if item is not None and math.isfinite(item)], np.float64)
            if finite.size:
                self._write(summary.histogram(tag, finite, _HISTOGRAM_BINS), step)
        else:
            self._write(summary.scalar(tag, math.nan if value is None else float(value)), step)

    def _write(self, content: Summary, step: int) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=content))


def _tag(name: str) -> str:
    """``elbo.kl`` becomes ``elbo/kl``, which TensorBoard shows in a group; names without a group are of the run."""
    return name.replace(".", "/", 1) if "." in name else f"run/{name}"
