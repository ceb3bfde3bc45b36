"""Published datasets read by several nodes with several workers each, through the libraries' own ways of sharing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from pathlib import Path

NUM, NUM_WORKERS = 50, 2

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves closing to the interpreter
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_webdataset_shares_shards_among_nodes_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_nodes: int
) -> None:
    """With its splitters by node and by worker, webdataset gives every sample to one worker of one node."""
    import webdataset as wds

    fake.publish(str(tmp_path), fake.make_plan(num_samples=NUM, format="webdataset"))
    pattern = str(tmp_path / "data" / "train-{00000..00003}-of-00004.tar")
    monkeypatch.setenv("WORLD_SIZE", str(num_nodes))
    seen: list[list[object]] = []
    for rank in range(num_nodes):
        monkeypatch.setenv("RANK", str(rank))
        rows = wds.WebDataset(
            pattern, shardshuffle=False, nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker
        )
        readers = DataLoader(rows.decode("rgb8").to_tuple("__key__", "cls"), batch_size=None, num_workers=NUM_WORKERS)
        mine = list(readers)
        assert len(mine) < NUM or num_nodes == 1
        seen += [list(row) for row in mine]
    gc.collect()  # here, where the warning about it is ignored, and not in another test
    labels = fake.labels_of(fake.SCHEMA, np.arange(NUM))
    assert labels is not None
    assert sorted(seen) == [[f"{index:012d}", label] for index, label in enumerate(labels.tolist())]


def test_hugging_face_shares_streams_among_nodes_and_workers(tmp_path: Path) -> None:
    """Streams split by node give every sample to one worker of one node, whether the nodes divide the shards evenly or not.

    In a process of its own: the library reads its environment when it is imported, and keeps what it finds.
    """
    for format in ("parquet", "webdataset"):
        fake.publish(str(tmp_path / format), fake.make_plan(num_samples=NUM, format=format))
    script = f"""
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
for format, index, num_nodes in [("parquet", "sample_index", 2), ("parquet", "sample_index", 3), ("webdataset", "__key__", 2)]:
    rows = load_dataset({str(tmp_path)!r} + "/" + format, split="train", streaming=True).select_columns([index])
    nodes = [split_dataset_by_node(rows, rank=rank, world_size=num_nodes) for rank in range(num_nodes)]
    seen = [[int(row[index]) for row in DataLoader(node, batch_size=None, num_workers={NUM_WORKERS})] for node in nodes]
    assert all(seen), seen
    assert sorted(sum(seen, [])) == list(range({NUM})), (format, num_nodes, seen)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, env=environment)
