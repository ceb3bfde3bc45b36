"""What is done to jobs, one function per scenario: in goes a seeded generator of random numbers, out comes what became of it.

Each round ends published with the undisturbed run's bytes, or unpublished with an error that says what to do, after which the
same command without faults publishes those bytes. Whatever else happens is an AssertionError.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.ground import Job, Place
from tests.chaos.jobs import READ_SECONDS
from tests.proxies import Fault, FaultProxy, Request

if TYPE_CHECKING:
    import random

    from tests.chaos.ground import Ground
    from tests.chaos.jobs import Ending

SERVERS = ("moto", "rclone")
Schedule = Callable[[Request], Fault | None]


@dataclass(frozen=True)
class Outcome:
    """One round: how many faults, whether the disturbed jobs published or a later one did, and what was lost or is too much."""

    faults: int
    published: bool
    resumed: bool
    losses: int
    duplicates: int
    error: str = ""


def conclude(ground: Ground, place: Place, endings: list[Ending | None], faults: int, says: str = "") -> Outcome:
    """Judge a place, resume where it is not published, and judge again; ``says`` is what an error has to say."""
    first = ground.judge(place)
    assert not (first.published and first.lost), f"published, but {first.lost} differ"
    error = ""
    for ending in endings:
        if ending is None:
            continue
        if not ending.error:
            assert first.published, "a job ended well and nothing is published"
            continue
        error = f"{ending.error}: {ending.message}"
        where = place.url in ending.message or "data/" in ending.message
        assert where, f"does not say where: {ending}"
        assert re.search(says, ending.message), f"does not say {says!r}: {ending}"
        assert "Traceback" not in ending.message
        assert len(ending.message) < 1500, ending
    resumed = not first.published
    if resumed:
        again = Job(ground, place).wait()
        assert again is not None
        assert not again.error, f"cannot be resumed: {again}"
    last = ground.judge(place)
    assert last.published
    return Outcome(faults, first.published, resumed, len(last.lost), len(set(first.extra) | set(last.extra)), error)


def disturbed(ground: Ground, place: Place, schedule: Schedule) -> tuple[Ending | None, int]:
    """Run a job behind a proxy that follows ``schedule``; its ending and the number of faults."""
    assert place.server is not None
    with FaultProxy(place.server.endpoint, schedule) as proxy:
        ending = Job(ground, place, proxy.url).wait()
        proxy.settle()
    return ending, len(proxy.faults)


def killed(ground: Ground, place: Place, rng: random.Random) -> tuple[Ending | None, int]:
    """Run a job that is killed before or after one of its requests was carried out, or never if it asks less."""
    assert place.server is not None
    at, before = rng.randrange(ground.num_requests), rng.random() < 0.5
    jobs: list[Job] = []

    def kill() -> None:
        while not jobs:
            time.sleep(0.001)
        jobs[0].send(signal.SIGKILL)

    fault = Fault("call", before=kill) if before else Fault("call", after=kill)
    with FaultProxy(place.server.endpoint, lambda request: fault if request.number == at else None) as proxy:
        jobs.append(Job(ground, place, proxy.url))
        ending = jobs[0].wait()
        proxy.settle()
    return ending, len(proxy.faults)


# --- kills -----------------------------------------------------------------------------------------------------------


def driver_killed(ground: Ground, rng: random.Random) -> Outcome:
    """SIGKILL at any request, up to three runs in a row."""
    place = ground.new_place(rng.choice(SERVERS))
    runs = [killed(ground, place, rng) for _ in range(rng.randint(1, 3))]
    return conclude(ground, place, [ending for ending, _ in runs], sum(faults for _, faults in runs))


def driver_killed_in_a_folder(ground: Ground, rng: random.Random) -> Outcome:
    """SIGKILL at any moment of a job that writes files, up to three runs in a row."""
    place, endings = ground.new_place("folder"), []
    for _ in range(rng.randint(1, 3)):
        job = Job(ground, place)
        time.sleep(rng.uniform(0, ground.seconds))
        job.send(signal.SIGKILL)
        endings.append(job.wait())
    return conclude(ground, place, endings, len(endings))


def two_drivers(ground: Ground, rng: random.Random) -> Outcome:
    """Two drivers of one plan at once, their requests delayed at random."""
    place = ground.new_place(rng.choice(SERVERS))
    assert place.server is not None

    def delay(_request: Request) -> Fault | None:
        pause = rng.uniform(0, 0.05)
        return Fault("call", before=lambda: time.sleep(pause)) if rng.random() < 0.5 else None

    with FaultProxy(place.server.endpoint, delay) as one, FaultProxy(place.server.endpoint, delay) as other:
        jobs = [Job(ground, place, proxy.url) for proxy in (one, other)]
        endings = [job.wait() for job in jobs]
    assert not any(ending and ending.error for ending in endings), endings
    return conclude(ground, place, endings, 1)


def one_of_two_drivers_killed(ground: Ground, rng: random.Random) -> Outcome:
    """Two drivers at once, one of which is killed at any request."""
    place = ground.new_place(rng.choice(SERVERS))
    other = Job(ground, place)
    ending, faults = killed(ground, place, rng)
    survivor = other.wait()
    assert survivor is not None
    assert not survivor.error, survivor
    return conclude(ground, place, [ending, survivor], faults)


def zombie(ground: Ground, rng: random.Random) -> Outcome:
    """A job is stopped at any request, another one publishes, then the first goes on to write."""
    place = ground.new_place(rng.choice(SERVERS))
    assert place.server is not None
    at = rng.randrange(ground.num_requests)
    jobs: list[Job] = []

    def stop() -> None:
        while not jobs:
            time.sleep(0.001)
        jobs[0].send(signal.SIGSTOP)

    fault = Fault("call", before=stop) if rng.random() < 0.5 else Fault("call", after=stop)
    with FaultProxy(place.server.endpoint, lambda request: fault if request.number == at else None) as proxy:
        jobs.append(Job(ground, place, proxy.url))
        while not proxy.faults and not jobs[0].ended:
            time.sleep(0.005)
        second = Job(ground, place).wait()
        jobs[0].send(signal.SIGCONT)
        first = jobs[0].wait()
    assert not any(ending is None or ending.error for ending in (first, second)), (first, second)
    return conclude(ground, place, [first, second], len(proxy.faults))


def late_writes(ground: Ground, rng: random.Random) -> Outcome:
    """Puts arrive after the client gave them up and wrote again, some of them after the dataset was published."""
    share = rng.uniform(0.05, 0.3)

    def late(request: Request) -> Fault | None:
        if request.method == "PUT" and rng.random() < share:
            return Fault("late", seconds=READ_SECONDS * rng.uniform(1.1, 4))
        return None

    return _with_faults(ground, rng, late)


# --- what a server may do --------------------------------------------------------------------------------------------


def _with_faults(ground: Ground, rng: random.Random, schedule: Schedule, kinds: tuple[str, ...] = SERVERS) -> Outcome:
    """A job with faults from its beginning, or, half of the time, one that goes on where another was killed."""
    place = ground.new_place(rng.choice(kinds))
    faults = 0
    if rng.random() < 0.5:
        _, faults = killed(ground, place, rng)
    ending, more = disturbed(ground, place, schedule)
    return conclude(ground, place, [ending], faults + more)


def _at_random(rng: random.Random, faults: list[Fault], methods: str = "GET PUT HEAD DELETE") -> Schedule:
    share = rng.uniform(0.05, 0.3)
    return lambda request: rng.choice(faults) if request.method in methods.split() and rng.random() < share else None


def server_errors(ground: Ground, rng: random.Random) -> Outcome:
    """Replies of 500, 502, 503 SlowDown and 504 at random."""
    codes = [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable"), (502, ""), (504, "")]
    return _with_faults(ground, rng, _at_random(rng, [Fault("reply", status, code) for status, code in codes]))


def throttled(ground: Ground, rng: random.Random) -> Outcome:
    """503 SlowDown to everything for a while, as while a prefix splits."""
    begin, length = rng.randrange(ground.num_requests), rng.randint(3, 25)
    slow = Fault("reply", 503, "SlowDown")
    return _with_faults(ground, rng, lambda request: slow if begin <= request.number < begin + length else None)


def conflicts(ground: Ground, rng: random.Random) -> Outcome:
    """409 for a race of conditional puts, and 412 for an object that is not there any more."""
    faults = [Fault("reply", 409, "ConditionalRequestConflict"), Fault("reply", 412, "PreconditionFailed")]
    schedule = _at_random(rng, faults, "PUT")
    return _with_faults(ground, rng, lambda request: schedule(request) if request.conditional else None, ("moto",))


def resets(ground: Ground, rng: random.Random) -> Outcome:
    """Connections closed before a request was carried out, or reset in the middle of an upload or of a reply's body."""
    return _with_faults(ground, rng, _at_random(rng, [Fault("reset"), Fault("abort")]))


def lost_replies(ground: Ground, rng: random.Random) -> Outcome:
    """Puts that succeed and whose reply is lost."""
    return _with_faults(ground, rng, _at_random(rng, [Fault("lost")], "PUT"))


def timeouts(ground: Ground, rng: random.Random) -> Outcome:
    """Requests that are never answered."""
    return _with_faults(ground, rng, _at_random(rng, [Fault("stall", seconds=READ_SECONDS * 1.5)]))


def broken_bodies(ground: Ground, rng: random.Random) -> Outcome:
    """Replies that end in the middle of their body, or have a bit turned in it."""
    return _with_faults(ground, rng, _at_random(rng, [Fault("cut"), Fault("flip")], "GET"))


def damaged_uploads(ground: Ground, rng: random.Random) -> Outcome:
    """Uploads whose checksum was found wrong by the server."""
    faults = [Fault("reply", 400, code) for code in ("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody")]
    return _with_faults(ground, rng, _at_random(rng, faults, "PUT"))


def storm(ground: Ground, rng: random.Random) -> Outcome:
    """Everything that may pass, at once."""
    faults = [
        Fault("reply", 500, "InternalError"),
        Fault("reply", 503, "SlowDown"),
        Fault("reset"),
        Fault("abort"),
        Fault("lost"),
        Fault("cut"),
        Fault("flip"),
        Fault("stall", seconds=READ_SECONDS * 1.2),
        Fault("late", seconds=READ_SECONDS * 1.5),
    ]
    return _with_faults(ground, rng, _at_random(rng, faults))


def server_restarted(ground: Ground, rng: random.Random) -> Outcome:
    """The server is killed at any request and started again."""
    at = rng.randrange(ground.num_requests)
    with ground.alone:
        fault = Fault("call", before=ground.restarting.restart)
        return _with_faults(ground, rng, lambda request: fault if request.number == at else None, ("restarting",))


def _from_some_request_on(ground: Ground, rng: random.Random, fault: Fault, says: str, methods: str) -> Outcome:
    begin = rng.randrange(ground.num_requests // 2)
    place = ground.new_place(rng.choice(SERVERS))
    ending, faults = disturbed(
        ground, place, lambda request: fault if request.number >= begin and request.method in methods.split() else None
    )
    assert ending is not None
    assert ending.error, "published although everything was refused"
    return conclude(ground, place, [ending], faults, says)


def credentials_expired(ground: Ground, rng: random.Random) -> Outcome:
    """From some request on the session token is too old."""
    says = r"^(?!.*403).*ExpiredToken.*get new credentials"
    return _from_some_request_on(ground, rng, Fault("reply", 400, "ExpiredToken"), says, "GET PUT HEAD DELETE")


def clock_skewed(ground: Ground, rng: random.Random) -> Outcome:
    """From some request on the server finds our clock wrong."""
    fault = Fault("reply", 403, "RequestTimeTooSkewed")
    return _from_some_request_on(ground, rng, fault, "set this machine's clock", "GET PUT HEAD DELETE")


def bucket_read_only(ground: Ground, rng: random.Random) -> Outcome:
    """From some request on nothing may be written."""
    return _from_some_request_on(ground, rng, Fault("reply", 403, "AccessDenied"), "s3:PutObject", "PUT DELETE")


def bucket_full(ground: Ground, rng: random.Random) -> Outcome:
    """From some request on the store has no space."""
    code = rng.choice(["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"])
    return _from_some_request_on(ground, rng, Fault("reply", 507, code), "make space", "PUT")


# --- disks -----------------------------------------------------------------------------------------------------------


def can_mount(folder: str) -> bool:
    """Whether small file systems can be mounted here."""
    if os.geteuid():
        return False
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        return False
    subprocess.run(["umount", folder], check=True)
    return True


def disk_full(ground: Ground, rng: random.Random) -> Outcome:
    """A folder on a disk that is too small, which then grows."""
    place = ground.new_place("folder")
    os.mkdir(place.url)  # noqa: PTH102
    size = rng.randint(16 * 1024, ground.num_bytes)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place.url], check=True)
    try:
        ending = Job(ground, place).wait()
        subprocess.run(["mount", "-o", "remount,size=16m", place.url], check=True)
        return conclude(ground, place, [ending], 1, "make space")
    finally:
        subprocess.run(["umount", place.url], check=True)


def disk_read_only(ground: Ground, rng: random.Random) -> Outcome:
    """A folder on a disk that turned read-only behind a job that was killed, and is then writable again."""
    place = ground.new_place("folder")
    os.mkdir(place.url)  # noqa: PTH102
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place.url], check=True)
    try:
        job = Job(ground, place)
        time.sleep(rng.uniform(0, ground.seconds))
        job.send(signal.SIGKILL)
        first = job.wait()
        subprocess.run(["mount", "-o", "remount,ro", place.url], check=True)
        second = Job(ground, place).wait()
        subprocess.run(["mount", "-o", "remount,rw", place.url], check=True)
        return conclude(ground, place, [first, second], 1, "check owner and mode|Read-only")
    finally:
        subprocess.run(["umount", place.url], check=True)


SCENARIOS: dict[str, Callable[[Ground, random.Random], Outcome]] = {
    function.__name__.replace("_", " "): function
    for function in (
        driver_killed,
        driver_killed_in_a_folder,
        two_drivers,
        one_of_two_drivers_killed,
        zombie,
        late_writes,
        server_errors,
        throttled,
        conflicts,
        resets,
        lost_replies,
        timeouts,
        broken_bodies,
        damaged_uploads,
        storm,
        server_restarted,
        credentials_expired,
        clock_skewed,
        bucket_read_only,
        bucket_full,
        disk_full,
        disk_read_only,
    )
}
NEED_MOUNT = {"disk full", "disk read only"}
