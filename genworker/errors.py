"""Every exception that genworker raises on purpose.

    GenworkerError                    anything below; the command line prints it as one message, exit code 1
    +-- UsageError                    a flag, a spec key or a value that can be right only otherwise; exit code 2
    +-- SourceError                   data to train on is missing, unreadable or of another shape
    |   +-- CorruptImageError         one image cannot be decoded; sources count these up to a limit
    +-- BundleError                   a bundle is missing, damaged, or of a kind that this version cannot load
    +-- CheckpointError               a checkpoint is damaged or belongs to another spec
    +-- TrainingError                 a training run cannot go on
    |   +-- DivergedError             it diverged more often than the watchdog may roll it back
    +-- PlanError                     a plan is invalid, or the URL already holds another one
    +-- StoreError                    the object store refused or failed
    |   +-- ObjectMissingError        there is no such object
    |   +-- ObjectExistsError         create-only put found an object under that key
    |   +-- StoreAccessError          no permission, no credentials, no bucket: retrying cannot help
    |   +-- StoreFullError            no space left
    +-- DatasetError                  a dataset is unfinished, or its objects differ from its manifest
    +-- DeterminismError              the same task gave two different results
    |   +-- OtherMachineError         it would on this machine, which is of another kind than the plan's
    +-- JobError                      a task kept failing, or actors kept dying
    +-- ClusterError                  Ray cannot be reached or lacks what was asked for

All of them survive pickling (they hold their message and nothing else), because Ray carries them between processes.
"""

from __future__ import annotations


class GenworkerError(Exception):
    """A failure whose message alone tells the user what failed, what was seen, the rule, and what to do next."""

    exit_code = 1


class UsageError(GenworkerError):
    """The request itself is wrong: a flag, a spec key or a value."""

    exit_code = 2


class SourceError(GenworkerError):
    """Training data is missing, unreadable or does not have the shape that the spec asks for."""


class CorruptImageError(SourceError):
    """One image of a source cannot be decoded."""


class BundleError(GenworkerError):
    """A bundle is missing, damaged, or of a kind that this version cannot load."""


class CheckpointError(GenworkerError):
    """A checkpoint is damaged or belongs to another spec."""


class TrainingError(GenworkerError):
    """A training run cannot go on."""


class DivergedError(TrainingError):
    """A training run diverged more often than the watchdog may roll it back; every worker says so at once."""


class PlanError(GenworkerError):
    """A plan is invalid, or the URL already holds another plan."""


class StoreError(GenworkerError):
    """The object store refused a request or failed; another attempt may succeed."""


class ObjectMissingError(StoreError):
    """There is no object under that key."""


class ObjectExistsError(StoreError):
    """A create-only put found an object under that key."""


class StoreAccessError(StoreError):
    """Credentials, permission or bucket are missing; another attempt cannot succeed."""


class StoreFullError(StoreError):
    """The store has no space left; another attempt cannot succeed until space is made."""


class DatasetError(GenworkerError):
    """A dataset is unfinished, or what is stored differs from its manifest."""


class DeterminismError(GenworkerError):
    """The same task gave two different results, or would."""


class OtherMachineError(DeterminismError):
    """This process computes or encodes otherwise than the plan says, so it makes nothing; another machine may."""


class DeviceError(GenworkerError):
    """The processor of this process, or what the process has of it, is in no state to go on; another process may be."""


class JobError(GenworkerError):
    """A bulk job cannot finish: a task kept failing, or actors kept dying."""


class ClusterError(GenworkerError):
    """Ray cannot be reached, or lacks the resources that were asked for."""
