"""All interleavings of the commit protocol, run by the protocol's own code.

A process (a driver, or one attempt at a shard) is told everything by the replies of its store, so its place is the list of
replies that it got. `_Replay` is a store that gives a process those replies again and stops it at the next request; that
request, applied to a `MemoryStore` of the world's objects, is one atomic step. The explorer walks the graph of all steps of
all processes, with drivers that are killed and started again at every step, and remembers every world that it has seen.

Two reductions, both by steps that commute, beside the symmetry of drivers of one plan. A request that reads, or tries to
create, an object that is there gives the same answer now and later and changes nothing, as long as no object ever changes:
it is done at once instead of at every time. That no object changes is itself checked at every step. And a kill takes away
only what a driver has read, so it is tried behind every step that changed something. A test compares with the whole graph.

What is not explored, but replaced by more than it can do: which missing shard a driver's makers take next (any), how the pool
retries (any attempt may begin at any time, die, or be a zombie), and when a driver that met another looks again (always).
`Driver._missing`, which draws the order, has a test of its own; so has the pool.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from genworker.bulk import commit
from genworker.bulk.layout import beside_key
from genworker.bulk.plan import DATA_PREFIX, REMOVING_KEY
from genworker.bulk.protocol import Driver, State
from genworker.errors import GenworkerError, ObjectExistsError, ObjectMissingError
from genworker.stores.base import ObjectInfo
from genworker.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from genworker.bulk.plan import Plan, Task
    from genworker.bulk.records import Manifest, Receipt
    from genworker.bundle import Bundle

T = TypeVar("T")
Objects = frozenset[tuple[str, bytes]]


class Operation(NamedTuple):
    """One request, as a process asks it.

    ``page`` lists what comes after ``key``; ``look`` and ``write`` are the halves of an unconditional put; ``take`` asks the
    driver's makers for a receipt.
    """

    method: str
    key: str
    prefix: str = ""
    data: bytes = b""


class _Paused(BaseException):
    """The replies are used up; what the process asks for next is known."""


class ViolationError(AssertionError):
    """A world that must not be, and the steps that led there."""


class _Replay:
    """The store of one process: gives it the replies it got, then stops it. ``page`` is the size of a listing's page."""

    url = "memory://replay"

    def __init__(self, replies: Sequence[Any], page: int, conditional: bool) -> None:
        self.conditional = conditional
        self._replies = iter(replies)
        self._page = page
        self.asked: Operation | None = None

    def ask(self, operation: Operation) -> Any:
        """The reply to a request."""
        if self.asked is None:
            for reply in self._replies:
                if isinstance(reply, GenworkerError):
                    raise reply
                return reply
            self.asked = operation
        raise _Paused

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> Any:
        if not overwrite and not self.conditional:
            if self.ask(Operation("look", key)):
                raise ObjectExistsError(f"put {key!r}: taken")
            overwrite = True
        return self.ask(Operation("write" if overwrite else "put", key, data=data))

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Any:
        data = self.ask(Operation("get", key))
        return data[start:] if length is None else data[start : start + length]

    def head(self, key: str) -> Any:
        return self.ask(Operation("head", key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        after = ""
        while page := self.ask(Operation("page", after, prefix)):
            yield from page
            after = page[-1].key
            if len(page) < self._page:
                return

    def delete(self, key: str) -> None:
        raise AssertionError(f"the protocol never deletes, but asked to delete {key}")


@dataclass(frozen=True)
class _Place:
    """Where a process stands: what it holds at the last boundary, and the replies since."""

    state: State | None = None  # of a driver
    receipts: tuple[Receipt, ...] = ()
    waiting: tuple[Receipt, ...] = ()
    replies: tuple[Any, ...] = ()
    result: Any = None
    ended: bool = False


class _World(NamedTuple):
    """Everything: objects, and the places of drivers and then of attempts, by driver, shard and number.

    All are numbers into the explorer's tables; an attempt is -1 until it may begin.
    """

    objects: int
    places: tuple[int, ...]


# A world -> the world before, who moved, and whether it was killed behind that step.
_Ways = dict[_World, tuple[_World, int, bool] | None]


class _Table(Generic[T]):
    """Numbers for values, so that worlds are small and compare fast."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


@dataclass
class Explorer:
    """A search of the worlds that drivers of ``plans``, one each, can bring about over one store.

    Args:
        plans: one per driver.
        bundle: of all plans.
        shard: gives what an attempt makes: names and bytes of the files beside the shard, and the shard's bytes.
        attempts: per driver and shard, any of them at any time, dead or slow ones included.
        conditional: whether the store enforces create-only puts; otherwise it looks first and writes later.
        page: objects per page of a listing, each page its own step.
        lost_replies: whether a put that succeeded may also be answered with "exists", as after a lost reply.
        receipts_per_object: of the drivers.
        reduce: whether requests whose answer can no longer change are done at once.
        driver: the state machine; mutants are given here.
        commit_shard: what an attempt does with its bytes.
        allowed: errors that may end a driver.
        check: raises AssertionError for objects that must not be.
    """

    plans: Sequence[Plan]
    bundle: Bundle
    shard: Callable[[Plan, Task, int], tuple[dict[str, bytes], bytes]]
    check: Callable[[dict[str, bytes]], None]
    attempts: int = 3
    conditional: bool = True
    page: int = 1000
    lost_replies: bool = False
    receipts_per_object: int = 1
    reduce: bool = True
    driver: type[Driver] = Driver
    commit_shard: Callable[..., Receipt] = commit.commit_shard
    allowed: tuple[type[GenworkerError], ...] = ()

    worlds: int = 0
    steps: int = 0
    kills: int = 0
    ends: set[tuple[bool, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._objects: _Table[Objects] = _Table()
        self._contents: list[dict[str, bytes]] = []
        self._stores: list[MemoryStore] = []
        self._places: _Table[tuple[tuple[int, int, int], _Place]] = _Table()
        self._requests: list[Operation | None] = []  # by place
        self._after: dict[tuple[int, Any], int] = {}
        self._answers: dict[tuple[int, Operation], list[tuple[int, Any]]] = {}
        self._settled: dict[tuple[int, Operation], bool] = {}
        self._num_drivers, self._num_shards = len(self.plans), self.plans[0].num_shards
        # Drivers of equal plans are alike, and so are their places.
        self._class = [self.plans.index(plan) for plan in self.plans]
        # Who a process is: (driver, -1, -1) or (driver, shard, number).
        self._who = [(d, -1, -1) for d in range(self._num_drivers)]
        self._who += [
            (d, shard, number)
            for d in range(self._num_drivers)
            for shard in range(self._num_shards)
            for number in range(self.attempts)
        ]
        self._bytes = {
            (d, shard, number): self.shard(self.plans[d], self.plans[d].task(shard), number)
            for d, shard, number in self._who[self._num_drivers :]
        }

    @property
    def stores(self) -> list[dict[str, bytes]]:
        """The contents of the store in every world that was reached."""
        return self._contents

    def explore(self) -> Explorer:
        """Walk through all worlds, breadth first, so that a violation is told with a shortest way to it."""
        empty = self._store({})
        self._beginnings = tuple(self._settle(who, _Place(State.CLAIM)) for who in range(self._num_drivers))
        here = _World(empty, self._beginnings + (-1,) * (len(self._who) - self._num_drivers))
        came: _Ways = {self._canonical(here): None}
        waiting = deque([here])
        try:
            while waiting:
                here = waiting.popleft()
                for who, killed, world in self._successors(here):
                    self.steps += 1
                    self.kills += killed
                    key = self._canonical(world)
                    if key not in came:
                        came[key] = here, who, killed
                        waiting.append(world)
        except AssertionError as err:
            raise ViolationError("\n".join([str(err), *self._way(here, came)])) from err
        self.worlds = len(came)
        return self

    def _canonical(self, world: _World) -> _World:
        """The same for two worlds that differ in which of two drivers of one plan is called the first."""
        size = self._num_shards * self.attempts
        n = self._num_drivers
        blocks = [(world.places[d], world.places[n + d * size : n + (d + 1) * size]) for d in range(n)]
        if len(set(self._class)) > 1 or blocks == sorted(blocks):
            return world
        blocks.sort()
        return _World(world.objects, sum((block for _, block in blocks), tuple(driver for driver, _ in blocks)))

    def _way(self, world: _World, came: _Ways) -> list[str]:
        lines: list[str] = []
        while (link := came[self._canonical(world)]) is not None:
            world, who, killed = link
            lines.append(f"  {self._name(world, who)}{', and is killed' if killed else ''}")
        return lines[::-1]

    def _name(self, world: _World, who: int) -> str:
        d, shard, number = self._who[who]
        place = world.places[who]
        request, (_, there) = self._requests[place], self._places.values[place]
        process = f"driver {d} ({there.state.value})" if there.state else f"driver {d}, shard {shard}, attempt {number}"
        return f"{process}: {request.method} {request.key}" if request else process

    # --- steps -------------------------------------------------------------------------------------------------------

    def _successors(self, world: _World) -> Iterator[tuple[int, bool, _World]]:
        """Who moved, whether it was killed right after, and the world then."""
        active = [who for who, place in enumerate(world.places) if place >= 0 and self._requests[place] is not None]
        if self.reduce:
            for who in active:
                if self._is_settled(world, who):
                    active = [who]
                    break
        moved = False
        for who in active:
            for step in self._moves(world, who):
                moved = True
                yield step
        if not moved:
            places = [self._places.values[place][1] for place in world.places[: self._num_drivers]]
            self.ends.add(tuple(place.state is State.DONE for place in places))
        if not self.reduce:
            for who in range(self._num_drivers):
                yield who, True, self._killed(world, who)

    def _moves(self, world: _World, who: int) -> Iterator[tuple[int, bool, _World]]:
        place = world.places[who]
        request = self._requests[place]
        assert request is not None
        if request.method == "take":
            answers = [(world.objects, receipt) for receipt in self._receipts(world, who)]
        elif who >= self._num_drivers and not self._may_begin(world, who):
            return
        else:
            answers = self._answer(world.objects, request)
        for objects, reply in answers:
            after = _World(objects, _with(world.places, who, self._reply(who, place, reply)))
            if who >= self._num_drivers:
                yield who, False, after
                continue
            after = self._begin_attempts(after, who)
            yield who, False, after
            # A kill matters to the world only behind a step that changed it: what a driver has only read dies with it.
            if self.reduce and (
                objects != world.objects or after.places[self._num_drivers :] != world.places[self._num_drivers :]
            ):
                yield who, True, self._killed(after, who)

    def _killed(self, world: _World, who: int) -> _World:
        """A driver is killed and started again; attempts that it began go on."""
        return world._replace(places=_with(world.places, who, self._beginnings[who]))

    def _may_begin(self, world: _World, who: int) -> bool:
        """Attempt n + 1 begins after attempt n did."""
        if self._who[who][2] == 0:
            return True
        _, place = self._places.values[world.places[who - 1]]
        return place.ended or bool(place.replies)

    def _is_settled(self, world: _World, who: int) -> bool:
        """Whether a process's next request has one answer, now and later, and changes nothing."""
        request = self._requests[world.places[who]]
        assert request is not None
        key = world.objects, request
        if key not in self._settled:
            there = self._contents[world.objects]
            self._settled[key] = (
                (request.method in {"get", "head", "put", "look"} and request.key in there)
                or request.key == REMOVING_KEY  # which nobody puts here
                or (request.method == "write" and there.get(request.key) == request.data)
                or (request.prefix == DATA_PREFIX and all(task.key in there for task in self.plans[0].tasks()))
            )
        return self._settled[key] and (who < self._num_drivers or self._may_begin(world, who))

    def _begin_attempts(self, world: _World, d: int) -> _World:
        """A driver that makes shards may have begun any attempt at what is missing; each goes on when it likes, or never."""
        _, place = self._places.values[world.places[d]]
        if place.state is not State.MAKE:
            return world
        done = {receipt.shard_index for receipt in place.receipts}
        places = list(world.places)
        for who in range(self._num_drivers, len(places)):
            driver, shard, _ = self._who[who]
            if driver == d and shard not in done and places[who] < 0:
                places[who] = self._settle(who, _Place())
        return world._replace(places=tuple(places))

    def _receipts(self, world: _World, d: int) -> Iterator[Receipt | GenworkerError]:
        """What the makers of a driver may give it next, also of shards that it has recalled meanwhile."""
        for who in range(self._num_drivers, len(world.places)):
            driver, _, _ = self._who[who]
            if driver == d and world.places[who] >= 0:
                _, attempt = self._places.values[world.places[who]]
                if attempt.ended:
                    yield attempt.result.reply if isinstance(attempt.result, _Kept) else attempt.result

    # --- processes ---------------------------------------------------------------------------------------------------

    def _reply(self, who: int, place: int, reply: Any) -> int:
        """The place of a process after a reply, at its next request."""
        key = place, _frozen(reply)
        if key not in self._after:
            _, before = self._places.values[place]
            self._after[key] = self._settle(who, replace(before, replies=(*before.replies, _Kept(reply))))
        return self._after[key]

    def _settle(self, who: int, place: _Place) -> int:
        """Run a process to its next request or its end; the number of the place where it then stands."""
        asked: Operation | None = None
        while asked is None and not place.ended:
            replay = _Replay([kept.reply for kept in place.replies], self.page, self.conditional)
            try:
                place = self._drive(who, place, replay) if who < self._num_drivers else self._make(who, replay)
            except _Paused:
                asked = replay.asked
            except self.allowed as err:
                place = _Place(state=place.state, ended=True, result=_Kept(err))
            except GenworkerError as err:
                raise AssertionError(f"process {who} ended with {type(err).__name__}: {err}") from err
            if place.state is State.DONE:
                place = replace(place, ended=True)
        d, shard, attempt = self._who[who]
        number = self._places.number(((self._class[d], shard, attempt), place))
        if number == len(self._requests):
            self._requests.append(asked)
        return number

    def _drive(self, d: int, place: _Place, replay: _Replay) -> _Place:
        """One state of a driver, from all that it holds between states."""

        def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
            for task in tasks:
                yield replay.ask(Operation("take", task.key))

        driver = self.driver(replay, self.plans[d], self.bundle, make, receipts_per_object=self.receipts_per_object)
        assert place.state is not None
        driver.state = place.state
        driver.receipts = {receipt.shard_index: receipt for receipt in place.receipts}
        driver.waiting = list(place.waiting)
        driver.step()
        waiting = [receipt.shard_index for receipt in driver.waiting]
        assert len(waiting) == len(set(waiting)), f"a receipt waits twice: {waiting}"
        receipts = tuple(_bare(driver.receipts[index]) for index in sorted(driver.receipts))
        result: Manifest | None = driver.manifest
        return _Place(driver.state, receipts, tuple(map(_bare, driver.waiting)), result=result and result.canonical())

    def _make(self, who: int, replay: _Replay) -> _Place:
        """An attempt from its beginning to its receipt."""
        d, shard, number = self._who[who]
        task = self.plans[d].task(shard)
        files, table = self._bytes[d, shard, number]
        # Threads put them, in any order; two orders are tried.
        for name, data in sorted(files.items(), reverse=number % 2 == 0):
            commit.put_same(replay, beside_key(task.key, name), data, number)
        beside_bytes = sum(map(len, files.values()))
        receipt = self.commit_shard(replay, task, table, number, beside_bytes=beside_bytes)
        return _Place(ended=True, result=_bare(receipt).model_copy(update={"duplicate": receipt.duplicate}))

    # --- the store ---------------------------------------------------------------------------------------------------

    def _answer(self, objects: int, operation: Operation) -> list[tuple[int, Any]]:
        """Objects and reply after a request; several where a reply may be lost."""
        key = objects, operation
        if key not in self._answers:
            self._answers[key] = list(self._apply(objects, operation))
        return self._answers[key]

    def _apply(self, objects: int, operation: Operation) -> Iterator[tuple[int, Any]]:
        store = self._stores[objects]
        method, key, prefix, data = operation
        if method in {"put", "write"}:
            store = filled(self._contents[objects])
        try:
            if method in {"put", "write"}:
                reply: Any = _timeless(store.put(key, data, overwrite=method == "write"))
            elif method == "get":
                reply = store.get(key)
            elif method == "head":
                reply = _timeless(store.head(key))
            elif method == "look":
                reply = key in self._contents[objects]
            else:
                found = [_timeless(info) for info in store.list(prefix) if info.key > key]
                reply = tuple(found[: self.page])
        except (ObjectExistsError, ObjectMissingError) as err:
            yield objects, type(err)(str(err).replace(store.url, _Replay.url))
            return
        contents = {info.key: store.get(info.key) for info in store.list()}
        changed = [name for name, content in self._contents[objects].items() if contents.get(name) != content]
        assert not changed, f"{changed[0]} was there and was changed"
        number = self._store(contents)
        yield number, reply
        if method == "put" and self.lost_replies:
            yield number, ObjectExistsError(f"put {key!r}: taken")

    def _store(self, contents: dict[str, bytes]) -> int:
        number = self._objects.number(frozenset(contents.items()))
        if number == len(self._contents):
            self._contents.append(contents)
            self._stores.append(filled(contents))
            self.check(contents)
        return number


@dataclass(frozen=True)
class _Kept:
    """A reply that compares by what it says, because two equal exceptions do not."""

    reply: Any = field(compare=False)
    said: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "said", _frozen(self.reply))


def _frozen(reply: Any) -> Any:
    return (type(reply), str(reply)) if isinstance(reply, Exception) else reply


def _timeless(info: ObjectInfo) -> ObjectInfo:
    return replace(info, modified=0.0)


def filled(contents: dict[str, bytes]) -> MemoryStore:
    """A store that holds these objects."""
    store = MemoryStore(f"memory://{uuid.uuid4().hex}")
    for key, data in contents.items():
        store.put(key, data)
    return store


def _with(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _bare(receipt: Receipt) -> Receipt:
    """A receipt without what is for people, and for the step that takes it; nothing that is stored depends on that."""
    return type(receipt).model_validate_json(receipt.canonical())
