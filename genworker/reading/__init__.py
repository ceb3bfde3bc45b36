"""Reading finished datasets: samples with their content checked (`open_dataset`), and a full check (`verify`)."""

from __future__ import annotations

from genworker.bulk.manifest import Fault, read_manifest
from genworker.reading.dataset import Dataset, open_dataset
from genworker.reading.samples import Sample
from genworker.reading.verify import verify

__all__ = ["Dataset", "Fault", "Sample", "open_dataset", "read_manifest", "verify"]
