"""A dataset as a torch `IterableDataset`: each sample goes to one rank and one DataLoader worker, and a state resumes it.

In: a dataset, stored or not, this process's rank. Out: samples with tensors. A state holds what a reader has yet to give, as
ranges of sample indices; so states of all readers together can be shared out anew among any other number of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from genworker.errors import UsageError
from genworker.reading import spans as ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genworker.reading.samples import Samples

State = dict[str, Any]


class TorchStream(IterableDataset[dict[str, Any]]):
    """Samples as ``{"index": int, "pixels": uint8 tensor [C, H, W], "label": int, "latents": float32 tensor, "score": float}``.

    Only what the dataset stores is there: no label for unlabelled data.

    Samples come in order of their indices, which for generated data is as random as any other order. A reader (one worker
    of one rank) reads one stretch of them, so that each shard is fetched by one reader, two where stretches meet. Shares
    differ by one sample at most.

    The state is that of the process that iterates. In a DataLoader with workers that is the worker, which is where
    torchdata's StatefulDataLoader asks for it. With torch's own DataLoader, tell the stream in the main process what
    arrived, ``stream.note_seen(batch["index"])`` for every batch, and its state is right too, whatever the workers have
    prefetched. (Without that, the main process cannot know that a loaded state was used, and every pass begins there.)
    """

    def __init__(self, dataset: Samples, *, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank}: it must be in [0, world_size), and world_size is {world_size}")
        self.dataset = dataset
        self._rank, self._world_size = rank, world_size
        # What was loaded and waits for the next pass; what this process has yet to give or to see in this pass.
        self._loaded: State | None = None
        self._left: ranges.Spans | None = None
        self._iterates_here = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Begin a pass: over what a loaded state has left, else over this reader's whole share.

        Raises:
            UsageError: the loaded state is that of another reader.
            DatasetError: a shard is missing, damaged, or differs from the manifest.
        """
        left = self._left = self._begin(*_place())
        self._loaded, self._iterates_here = None, True
        for first, stop in list(left):
            for batch in self.dataset.read(first, stop):
                for row, index in enumerate(batch.sample_index.tolist()):
                    # Before the yield: who has been given a sample has seen it, and so have those before it.
                    left = self._left = ranges.without(left, first, index + 1)
                    sample: dict[str, Any] = {
                        "index": index,
                        "pixels": torch.from_numpy(batch.pixels[row]).permute(2, 0, 1).contiguous(),
                    }
                    if batch.labels is not None:
                        sample["label"] = int(batch.labels[row])
                    if batch.latents is not None:
                        sample["latents"] = torch.from_numpy(batch.latents[row])
                    if batch.scores is not None:
                        sample["score"] = float(batch.scores[row])
                    yield sample
            # Shards that were skipped are done with as well.
            left = self._left = ranges.without(left, first, stop)

    def note_seen(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Tell the main process of a DataLoader with workers which samples have arrived.

        An index that had arrived before begins the next pass. Does nothing in a process that iterates itself, whose state
        is right without.

        Raises:
            UsageError: an index is not of this rank's share.
        """
        if self._iterates_here:
            return
        arrived = np.unique(np.asarray(indices, dtype=np.int64))
        if self._left is None:
            self._left, self._loaded = self._begin(0, 1), None
        if not all(ranges.contains(self._left, index) for index in arrived.tolist()):
            self._left = ranges.share([(0, len(self.dataset))], self._rank, self._world_size)
        for index in arrived.tolist():
            if not ranges.contains(self._left, index):
                raise UsageError(f"sample {index} is not of rank {self._rank} of {self._world_size}")
        for run in np.split(arrived, np.flatnonzero(np.diff(arrived) != 1) + 1):
            if len(run):
                self._left = ranges.without(self._left, int(run[0]), int(run[-1]) + 1)

    def state_dict(self) -> State:
        """What is left of the current pass, as plain JSON: for `load_state_dict`, or for `merge_states`."""
        left = self._begin(*_place()) if self._left is None else self._left
        return {
            "plan_id": self.dataset.plan.plan_id,
            "reader": list(self._reader_at(*_place())),
            "left": [list(pair) for pair in left],
        }

    def load_state_dict(self, state: State) -> None:
        """Let the next pass give what is left of an earlier one, and passes after it everything again.

        Args:
            state: of the same reader, or of the same rank (its workers share what is left), or the merged one of all
                readers (all ranks and workers share what is left).

        Raises:
            UsageError: it is no state of `state_dict`, or of another dataset.
        """
        if not _is_state(state):
            raise UsageError(f"the state {state!r:.200}: give what state_dict or merge_states returned")
        if state["plan_id"] != self.dataset.plan.plan_id:
            raise UsageError(f"the state is of plan {state['plan_id']}, this dataset is of {self.dataset.plan.plan_id}")
        try:
            ranges.union((int(first), int(stop)) for first, stop in state["left"])
        except ValueError as err:
            raise UsageError(f"the state {state!r:.200}: {err}") from err
        beyond = [span for span in state["left"] if not 0 <= span[0] <= span[1] <= len(self.dataset)]
        if beyond:
            raise UsageError(f"the state has samples {beyond[0]} left, the dataset has {len(self.dataset)}")
        self._loaded, self._left = state, None

    def _reader_at(self, part: int, num_parts: int) -> tuple[int, int]:
        """Which reader of how many in all part ``part`` of ``num_parts`` of this rank is."""
        return self._rank * num_parts + part, self._world_size * num_parts

    def _begin(self, part: int, num_parts: int) -> ranges.Spans:
        """What this reader, part ``part`` of ``num_parts`` of its rank, has to give in the pass that begins."""
        reader = self._reader_at(part, num_parts)
        if self._loaded is None:
            return ranges.share([(0, len(self.dataset))], *reader)
        left = [(int(first), int(stop)) for first, stop in self._loaded["left"]]
        shared_among = {(0, 1): reader, (self._rank, self._world_size): (part, num_parts), reader: (0, 1)}
        of = tuple(self._loaded["reader"])
        if of not in shared_among:
            raise UsageError(
                f"the state is of reader {of[0]} of {of[1]}, this is reader {reader[0]} of {reader[1]}: to go on with "
                "another number of ranks or workers, merge the states of all readers with merge_states"
            )
        return ranges.share(left, *shared_among[of])


def _is_state(state: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and isinstance(state.get("plan_id"), str)
        and _are_whole([state.get("reader")])
        and isinstance(state.get("left"), Sequence)
        and _are_whole(state["left"])
    )


def _are_whole(pairs: Sequence[Any]) -> bool:
    return all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(number, int) for number in pair)
        for pair in pairs
    )


def _place() -> tuple[int, int]:
    """Which DataLoader worker of how many this process is; 0 of 1 outside of one."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


def merge_states(states: Sequence[State]) -> State:
    """One state for all readers from the states of each, to go on with another number of ranks or workers.

    Raises:
        UsageError: a reader's state is missing or there twice, or they are not of one pass over one dataset.
    """
    for state in states:
        if not _is_state(state):
            raise UsageError(f"the state {state!r:.200}: give what state_dict returned")
    plans = {state["plan_id"] for state in states}
    readers = sorted(tuple(state["reader"]) for state in states)
    if len(plans) != 1 or readers != [(index, len(states)) for index in range(len(states))]:
        raise UsageError(
            f"states of readers {readers} of plans {sorted(plans)}: give the states of all readers of one dataset, each once"
        )
    try:
        left = ranges.union((int(first), int(stop)) for state in states for first, stop in state["left"])
    except ValueError as err:
        raise UsageError(f"the states are not of one pass: {err}") from err
    return {"plan_id": plans.pop(), "reader": [0, 1], "left": [list(pair) for pair in left]}
