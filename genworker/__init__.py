"""genworker: train a GAN or a VAE on a Ray cluster, turn it into millions of stored samples, read them anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["GenworkerError", "__version__", "open"]

from genworker.errors import GenworkerError

if TYPE_CHECKING:
    from genworker.reading.dataset import Dataset


def open(url: str, **options: Any) -> Dataset:
    """Open a published dataset for reading; see `genworker.reading.dataset.open_dataset`, which this is."""
    from genworker.reading.dataset import open_dataset

    return open_dataset(url, **options)
