"""genworker: train a GAN or a VAE on a Ray cluster, turn it into millions of stored samples, read them anywhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, overload

__version__ = "0.1.0"
__all__ = ["GenworkerError", "__version__", "open"]

from genworker.errors import GenworkerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from genworker.bulk.plan import Plan
    from genworker.reading.dataset import Dataset
    from genworker.reading.virtual import VirtualDataset


@overload
def open(
    url: str | os.PathLike[str], *, verify: bool = True, on_bad_shard: Literal["raise", "skip"] = "raise"
) -> Dataset: ...


@overload
def open(url: str | os.PathLike[str], plan: Plan | Mapping[str, Any], *, use_gpu: bool = False) -> VirtualDataset: ...


@overload
def open(url: str | os.PathLike[str], *, num_samples: int, use_gpu: bool = False, **request: Any) -> VirtualDataset: ...


@overload
def open(url: str | os.PathLike[str], *, virtual: Literal[True], use_gpu: bool = False) -> VirtualDataset: ...


def open(
    url: str | os.PathLike[str],
    plan: Plan | Mapping[str, Any] | None = None,
    *,
    virtual: bool = False,
    **options: Any,
) -> Dataset | VirtualDataset:
    """Open a dataset for reading, stored or not.

    A published dataset by its URL, or by the path of its folder: see `genworker.reading.dataset.open_dataset` for the options.
    Without storage, the samples that `genworker generate` would store: of a bundle with ``num_samples`` (and seed, labels,
    columns, ...) or with a ``plan``, and with ``virtual=True`` those of a dataset's own plan and bundle: see
    `genworker.bulk.virtual.open_virtual`.
    """
    url = os.fspath(url)
    if virtual or plan is not None or "num_samples" in options:
        from genworker.bulk.virtual import open_virtual

        return open_virtual(url, plan=plan, **options)
    from genworker.reading.dataset import open_dataset

    return open_dataset(url, **options)
