"""Samples as a Ray Data dataset: each read task reads some shards of the plan, through the same checks as any reader.

In: `Samples`. Out: a `ray.data.Dataset`. Ray is imported when it is asked for, and its cluster is the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genworker.reading.samples import Samples
    from genworker.schema import SampleBatch


def to_ray(samples: Samples, **options: Any) -> Any:
    """Read ``samples`` with Ray Data; see `genworker.reading.samples.Samples.to_ray`."""
    import ray.data
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    plan = samples.plan
    schema = samples.schema
    row_bytes = 8 + schema.height * schema.width * schema.channels + 4 * plan.latent_dim

    def reading(shards: range) -> Callable[[], Iterator[Any]]:
        # Pickled with what it refers to, and run where the task runs.
        def blocks() -> Iterator[Any]:
            for batch in samples.batches(shards):
                yield BlockAccessor.batch_to_block(columns_of(batch))

        return blocks

    class ShardSource(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return len(samples) * row_bytes

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[Any]:
            del data_context
            parts = min(parallelism, plan.num_shards)
            tasks = []
            for part in range(parts):
                shards = range(plan.num_shards * part // parts, plan.num_shards * (part + 1) // parts)
                last = plan.task(shards[-1])
                rows = last.first_index + last.num_samples - plan.task(shards[0]).first_index
                # Ray takes this for the truth, and counts without reading.
                known = None if samples.leaves_out else rows
                metadata = BlockMetadata(num_rows=known, size_bytes=rows * row_bytes, exec_stats=None, input_files=None)
                tasks.append(ReadTask(reading(shards), metadata, per_task_row_limit=per_task_row_limit))
            return tasks

    return ray.data.read_datasource(ShardSource(), **options)


def columns_of(batch: SampleBatch) -> dict[str, Any]:
    """A batch as arrays by column name; those that it does not have are absent."""
    found = {
        "sample_index": batch.sample_index,
        "pixels": batch.pixels,
        "label": batch.labels,
        "latents": batch.latents,
        "score": batch.scores,
    }
    return {name: values for name, values in found.items() if values is not None}
