"""Published datasets as Hugging Face `datasets` sees them, read with `load_dataset` itself and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from genworker.schema import ImageSchema
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from pathlib import Path

# In a process of its own: the library reads its environment when it is imported, and keeps what it finds.
PRELUDE = """
import sys
import numpy as np
from datasets import ClassLabel, Image, List, Value, load_dataset
from PIL.Image import Image as PilImage
from tests.fakes import dataset as fake
rows = load_dataset(sys.argv[1], **{options})
"""


def run(folder: Path, cache: Path, code: str, **options: object) -> None:
    environment = os.environ | {"HF_HOME": str(cache), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    script = PRELUDE.replace("{options}", repr(options)) + code
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment)


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_loads_as_pictures_and_class_names(tmp_path: Path, streaming: bool) -> None:
    """load_dataset(folder) finds the split, PIL images and class names, though control objects outnumber the shards."""
    folder = tmp_path / "set"
    fake.publish(str(folder), fake.make_plan(), num_receipt_copies=3)
    assert len(list((folder / ".genworker").rglob("*.json"))) > 3 * len(list((folder / "data").iterdir()))
    run(
        folder,
        tmp_path / "cache",
        """
assert list(rows) == ["train"], rows
train = rows["train"]
assert train.features == {
    "sample_index": Value("int64"), "image": Image(), "label": ClassLabel(names=["boot", "bag", "coat"])
}, train.features
found = list(train)
expected = fake.samples_of(fake.SCHEMA, np.arange(50))
assert [row["sample_index"] for row in found] == list(range(50))
assert [row["label"] for row in found] == expected.labels.tolist()
for row, pixels in zip(found, expected.pixels, strict=True):
    assert isinstance(row["image"], PilImage), row
    np.testing.assert_array_equal(np.asarray(row["image"]), pixels)
""",
        streaming=streaming,
    )


def test_unnamed_classes_and_raw_pixels_load_too(tmp_path: Path) -> None:
    """Classes without names are called by their numbers, and raw pixels are bytes."""
    schema = ImageSchema(channels=1, height=4, width=4, num_classes=3)
    folder = tmp_path / "set"
    fake.publish(str(folder), fake.make_plan(schema=schema, codec="raw"))
    run(
        folder,
        tmp_path / "cache",
        """
assert rows["train"].features == {
    "sample_index": Value("int64"), "image": Value("binary"), "label": ClassLabel(names=["0", "1", "2"])
}
assert rows["train"].num_rows == 50
assert len(rows["train"][0]["image"]) == 16
""",
    )


def test_unlabelled_data_loads_without_a_label_column(tmp_path: Path) -> None:
    """A dataset without classes has no label; latents are lists of floats, scores floats."""
    folder = tmp_path / "set"
    schema = ImageSchema(channels=1, height=4, width=4)
    fake.publish(str(folder), fake.make_plan(schema=schema, columns=("latents", "score")))
    run(
        folder,
        tmp_path / "cache",
        """
assert rows["train"].features == {
    "sample_index": Value("int64"), "image": Image(), "latents": List(Value("float32")), "score": Value("float32")
}
assert rows["train"][3]["latents"] == [np.float32(3 + k / 7) for k in range(6)]
assert rows["train"][3]["score"] == -1.0
assert rows["train"][3]["image"].mode == "L"
""",
    )
