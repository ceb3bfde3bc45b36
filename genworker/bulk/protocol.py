"""The driver's way through the commit protocol, as a state machine over storage.

    CLAIM    put the plan, read it back           create-only; another plan ends here
    BUNDLE   put the bundle beside it             before any shard is made from it
    RECALL   read receipts, list and adopt shards what earlier runs and other drivers committed
    MAKE     take one receipt from the makers     they put shards, each create-only; RECALL when one was there already
    RECORD   put the receipts that wait           then MAKE again, or PUBLISH when all is made
    PUBLISH  list shards, put manifest, _SUCCESS  create-only, last

In: a store, a plan, its bundle, and something that makes shards. Out: a manifest. A driver may be killed at any point and run
beside others of the same plan: all that it knows it can read back, and every put is one that anybody may repeat.
`tests/unit/test_protocol.py` runs this code through all interleavings.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from enum import Enum

from genworker.bulk import commit, failures, ledger
from genworker.bulk.plan import Plan, Task
from genworker.bulk.records import Manifest, Receipt
from genworker.bundle import Bundle
from genworker.errors import GenworkerError, PlanError, StoreError
from genworker.stores.base import Store

# A driver that is killed leaves receipts unwritten, and its successor reads those shards: few, or a small part of what is
# there, and made in a small part of the driver's time. So batches grow with the job, and a million shards take hundreds of
# objects.
RECEIPTS_PER_OBJECT = 16
_MOST_RECEIPTS_PER_OBJECT = 4096
_PART_OF_DONE = 32
_RECORD_SECONDS, _PART_OF_TIME = 60.0, 64
# A recall lists a thousand shards per request, so it costs a driver that takes this part of them first next to nothing.
_SHARDS_PER_RECALL = 1_000

Makers = Callable[[Iterator[Task]], Iterator[Receipt]]


class State(Enum):
    """Where a driver stands; the value is the state's name in logs."""

    CLAIM = "claim"
    BUNDLE = "bundle"
    RECALL = "recall"
    MAKE = "make"
    RECORD = "record"
    PUBLISH = "publish"
    DONE = "done"


class Driver:
    """One run of a job. `step` does the work of the present state and moves to the next; `run` does all of them.

    Args:
        store: of the dataset.
        plan: to carry out.
        bundle: that the plan names.
        make: makes and commits the tasks that it is given, each once, and yields receipts in any order.
        on_recalled: told of the receipts that are there, at the start and whenever another driver was met.
        on_adopted: told how many of the shards that are there without a receipt were checked, and of how many.
        on_made: told of each new receipt.
        end_makers: called when the run fails, before that is recorded: whatever is stored after a failure makes it history.
        receipts_per_object: how many receipts wait before they are stored, more in large jobs.

    Attributes:
        state: where the driver stands.
        receipts: what is known to be committed, by shard index.
        waiting: receipts that no object below .genworker/receipts/ holds yet.
        manifest: of the published dataset, once the state is DONE.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        bundle: Bundle,
        make: Makers,
        *,
        on_recalled: Callable[[Mapping[int, Receipt]], None] = lambda _receipts: None,
        on_adopted: Callable[[int, int], None] = lambda _done, _total: None,
        on_made: Callable[[Receipt], None] = lambda _receipt: None,
        end_makers: Callable[[], None] = lambda: None,
        receipts_per_object: int = RECEIPTS_PER_OBJECT,
    ) -> None:
        self.state = State.CLAIM
        self.receipts: MutableMapping[int, Receipt] = {}
        self.waiting: list[Receipt] = []
        self.manifest: Manifest | None = None
        self._store, self._plan, self._bundle, self._make = store, plan, bundle, make
        self._on_recalled, self._on_adopted, self._on_made = on_recalled, on_adopted, on_made
        self._end_makers = end_makers
        self._receipts_per_object = receipts_per_object
        self._made: Iterator[Receipt] | None = None
        self._elsewhere = False  # whether the next task is to be drawn from another place
        self._taken = 0  # receipts since the last recall
        self._began_at = self._recorded_at = time.monotonic()
        self._steps: dict[State, Callable[[], State]] = {
            State.CLAIM: self._claim,
            State.BUNDLE: self._store_bundle,
            State.RECALL: self._recall,
            State.MAKE: self._take,
            State.RECORD: self._record,
            State.PUBLISH: self._publish,
        }

    def run(self) -> Manifest:
        """Go on until the dataset is published.

        Raises:
            GenworkerError: a step failed; what was made stays, and another run goes on from there.
        """
        try:
            while self.state is not State.DONE:
                self.step()
        except BaseException as err:
            self._end_makers()
            # What ended this run is the error to tell.
            with contextlib.suppress(StoreError, PlanError):
                # A URL that is another plan's, or is being removed, gets nothing more.
                commit.check_ours(self._store, self._plan)
                # Spares the next run a look into these shards.
                ledger.write(self._store, self._plan, self.waiting)
                if isinstance(err, GenworkerError):
                    failures.write(self._store, self._plan, str(err), len(self.receipts))
            raise
        assert self.manifest is not None
        return self.manifest

    def step(self) -> None:
        """Do the work of the present state."""
        self.state = self._steps[self.state]()

    def _claim(self) -> State:
        commit.claim(self._store, self._plan)
        return State.BUNDLE

    def _store_bundle(self) -> State:
        commit.store_bundle(self._store, self._bundle)
        return State.RECALL

    def _recall(self) -> State:
        recorded = ledger.read(self._store, self._plan)
        self.waiting = []
        self.receipts = ledger.committed(self._store, self._plan, recorded, self._adopt)
        self._elsewhere, self._taken = self._made is not None, 0
        self._on_recalled(self.receipts)
        return State.MAKE

    def _adopt(self, receipt: Receipt, done: int, total: int) -> None:
        """Keep the receipt of a shard that had none: with the first batch, or earlier where there are many of them."""
        self.waiting.append(receipt)
        if self._is_due():
            self._record()
        self._on_adopted(done, total)

    def _is_due(self) -> bool:
        now = time.monotonic()
        return now - self._recorded_at >= max(_RECORD_SECONDS, (now - self._began_at) / _PART_OF_TIME)

    def _take(self) -> State:
        if self._made is None:
            self._made = self._make(self._missing())
        receipt = next(self._made, None)
        if receipt is None:
            return State.RECORD if self.waiting else State.PUBLISH
        # One that was running when another driver's was recalled is known already.
        if receipt.shard_index not in self.receipts:
            self.receipts[receipt.shard_index] = receipt
            self.waiting.append(receipt)
            self._on_made(receipt)
        self._taken += 1
        if receipt.duplicate and self._taken >= self._plan.num_shards // _SHARDS_PER_RECALL:
            # Another driver makes what this one makes. What it has done is left out, and the two go on at other places.
            self._record()
            return State.RECALL
        batch = self._receipts_per_object
        if not self._is_due():
            batch = max(batch, min(len(self.receipts) // _PART_OF_DONE, _MOST_RECEIPTS_PER_OBJECT))
        return State.RECORD if len(self.waiting) >= batch else State.MAKE

    def _missing(self) -> Iterator[Task]:
        """The tasks without a receipt, each once: in order, or from a place drawn anew when another driver was met."""
        count, place = self._plan.num_shards, 0
        given = bytearray(count)
        while True:
            if self._elsewhere:
                self._elsewhere, place = False, random.randrange(count)  # noqa: S311 - two drivers need only differ
            around = itertools.chain(range(place, count), range(place))
            index = next((i for i in around if not (given[i] or i in self.receipts)), None)
            if index is None:
                return
            given[index], place = 1, index + 1
            yield self._plan.task(index)

    def _record(self) -> State:
        ledger.write(self._store, self._plan, self.waiting)
        self.waiting, self._recorded_at = [], time.monotonic()
        return State.MAKE

    def _publish(self) -> State:
        # Where puts have no condition another plan may have come over ours, and everywhere a job that was silent may have been
        # given up; then these are not the shards to vouch for.
        commit.check_ours(self._store, self._plan)
        self.manifest = commit.publish(self._store, self._plan, self.receipts)
        return State.DONE
