"""Ray Data pipelines: as a user writes one, and one that was given our engine and codec."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from tests.benchmarks.generate.clock import Clock, job_sizes, start_ray
from tests.benchmarks.generate.models import PLAIN_BATCH, pillow_pngs, plain_generator, plain_inputs

if TYPE_CHECKING:
    from pathlib import Path

ACTORS = 2
MICRO_BATCHES_PER_BLOCK = 4


class UserSampler:
    """What a user passes to `map_batches`: row ids to rows with PNG images."""

    def __init__(self, bundle: str) -> None:
        self.generator, self.classes = plain_generator(bundle)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Generate as many rows as there are ids."""
        import torch

        with torch.inference_mode():
            z, labels = plain_inputs(self.generator, self.classes, len(batch["id"]))
            images = self.generator(z, labels)
        return {"id": batch["id"], "image": list(pillow_pngs(images)), "label": labels.numpy()}


class EngineSampler:
    """The same with our engine and codec: numbers of micro-batches to rows."""

    def __init__(self, bundle: str, samples: int) -> None:
        import torch

        from genworker import bundle as bundles
        from genworker import codecs
        from genworker.bulk.request import virtual_plan
        from genworker.sampling.engine import Engine
        from genworker.stores import open_store

        torch.set_num_threads(1)
        loaded = bundles.load(open_store(bundle))
        cpu = torch.device("cpu")
        plan = virtual_plan(loaded.info, samples, 0, cpu)
        self.size, self.samples = plan.numerics.micro_batch, samples
        self.engine = Engine(loaded, plan, cpu)
        self.codec = codecs.make(plan.codec, plan.image_schema)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Generate the micro-batches of these numbers."""
        import numpy as np

        columns: dict[str, list[Any]] = {"id": [], "image": [], "label": []}
        for number in batch["id"].tolist():
            first = number * self.size
            for made in self.engine.batches(first, min(self.size, self.samples - first)):
                columns["id"].extend(made.sample_index.tolist())
                columns["image"].extend(self.codec.encode(pixels) for pixels in made.pixels)
                columns["label"].extend([] if made.labels is None else made.labels.tolist())
        return columns | {"id": np.array(columns["id"]), "label": np.array(columns["label"])}


def as_users_write_it(bundle: str, samples: int, folder: Path, *, cold: bool = False) -> dict[str, float]:
    """Range -> map_batches with two actors, batches of 256, float32, Pillow -> write_parquet."""
    import ray.data

    start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    found: dict[str, float] = {}
    for name, count in job_sizes(samples, cold=cold):
        with Clock(name, found):
            rows = ray.data.range(count)
            pool = ray.data.ActorPoolStrategy(size=ACTORS)
            sampled = rows.map_batches(UserSampler, fn_constructor_args=(bundle,), batch_size=PLAIN_BATCH, compute=pool)
            sampled.write_parquet(str(folder / name))
    if not cold:
        check_images(folder / "job", samples)
    return found


def with_our_engine(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """The same pipeline with our engine, codec, micro-batches and allocator in its two actors."""
    import ray.data

    from genworker.bulk.request import virtual_plan
    from genworker.cluster import ALLOCATOR_ENV

    start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    size = _micro_batch(bundle, virtual_plan)
    found: dict[str, float] = {}
    for name, count in job_sizes(samples, cold=False):
        with Clock(name, found):
            rows = ray.data.range(-(-count // size))
            sampled = rows.map_batches(
                EngineSampler,
                fn_constructor_args=(bundle, count),
                batch_size=MICRO_BATCHES_PER_BLOCK,
                compute=ray.data.ActorPoolStrategy(size=ACTORS),
                runtime_env={"env_vars": ALLOCATOR_ENV},
            )
            sampled.write_parquet(str(folder / name))
    check_images(folder / "job", samples)
    return found


def _micro_batch(bundle: str, virtual_plan: Any) -> int:
    import torch

    from genworker import bundle as bundles
    from genworker.stores import open_store

    info = bundles.load_info(open_store(bundle))
    return int(virtual_plan(info, 1, 0, torch.device("cpu")).numerics.micro_batch)


def check_images(folder: Path, samples: int) -> None:
    """Fail unless the folder's Parquet files hold that many different, decodable images that are not blank."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    images = pq.read_table(folder, columns=["image"]).column("image").to_pylist()
    assert len(images) == samples
    arrays = [np.asarray(Image.open(io.BytesIO(data))) for data in images[:: max(1, samples // 200)]]
    assert all(array.std() > 1 for array in arrays)
    assert len({array.tobytes() for array in arrays}) == len(arrays)
