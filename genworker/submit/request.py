"""What is to run as a job: a command with its arguments, the specs among them, and the environment that goes along.

In: what a user typed. Out: the job's id, its entry point and its runtime environment. It reads files and sends nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genworker.bulk.schedule import check_run_id
from genworker.config import find_spec, preset_names
from genworker.errors import UsageError
from genworker.yaml_text import read_mapping

# Commands, and below which folder of the shipped specs theirs lie.
COMMANDS = {"train": "", "generate": "generate", "backfill": "generate", "evaluate": ""}
_SPEC_OPTIONS = ("--spec", "--data")
_SPEC_FIRST = ("train", "backfill")
# Keys by which a spec is known.
_KEYS = {"generate": {"bundle", "out", "num_samples"}, "train": {"data", "family"}}
_PROGRAM = ("python", "-m", "genworker.cli")
# How long Ray waits for a driver that is stopped, read by the job's supervisor. Its own 3 s are less than a job takes to drain.
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_SECONDS = 60
_URL_WITH_PASSWORD = re.compile(r"://[^\s/@:]*:[^\s/@]+@")
_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "ACCESS_KEY", "API_KEY")


def call_of(what: str, arguments: Sequence[str], run_id: str = "") -> tuple[str, list[str]]:
    """The command and arguments that ``what`` stands for: a command itself, or the spec of a job, a file or a shipped one.

    The spec of a dataset is given ``run_id`` for its templates, and as its date where it is one.

    Raises:
        UsageError: it is neither, or a file that is no spec.
    """
    if what in COMMANDS:
        return what, list(arguments)
    command = _kind(what)
    if command == "train":
        return command, [what, *arguments]
    words = ["--spec", what]
    if run_id:
        words += ["--run-id", run_id]
        with contextlib.suppress(ValueError):
            words += ["--date", f"{datetime.date.fromisoformat(run_id)}"]
    return command, [*words, *arguments]


def _kind(what: str) -> str:
    """Which command a spec is for, by its keys."""
    path = find_spec(what, COMMANDS["train"]) or find_spec(what, COMMANDS["generate"])
    if path is None:
        raise UsageError(
            f"{what!r}: cannot be submitted; choose one of {', '.join(COMMANDS)}, a spec's file, or a shipped spec: "
            f"{', '.join([*preset_names(), *preset_names('generate')])}"
        )
    keys = read_mapping(path).keys()
    for command, known in _KEYS.items():
        if keys & known:
            return command
    raise UsageError(f"spec {what}: is none of a dataset (bundle, out) and none of a training run (data, family)")


@dataclass(frozen=True)
class Request:
    """What is to run.

    Attributes:
        command: of the command line, one of `COMMANDS`.
        arguments: of that command.
        run_id: told apart from other runs of the same command, for example a date; may be empty.
        working_dir: a folder to send along, whose ``genworker`` is used where it holds one; None uses the cluster's own.
        variables: of the job's environment. They can be read by whoever sees the cluster's dashboard.
        num_cpus: that the driver itself takes; 0 runs it on the head.
        environment: a runtime environment of Ray (pip, image_uri, excludes, ...), to which the others are added.
    """

    command: str
    arguments: Sequence[str]
    run_id: str = ""
    working_dir: Path | None = None
    variables: Mapping[str, str] | None = None
    num_cpus: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def submission_id(self) -> str:
        """``genworker-<command>-<digest>[-<run id>]``: the digest is of the arguments, with specs by their content.

        So it is the same from any folder and machine, however the file of a spec is called.
        """
        content: list[Any] = [self.command, *self._words()]
        for place, path in self._specs().items():
            content[place + 1] = {"spec": hashlib.sha256(path.read_bytes()).hexdigest()}
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        return "-".join(filter(None, ["genworker", self.command, digest, self.run_id]))

    def check(self) -> None:
        """Raise UsageError for what can be seen to be wrong before anything is sent."""
        if self.run_id:
            check_run_id(self.run_id)
        for name in self._variables():
            if any(word in name.upper() for word in _SECRET_WORDS):
                raise UsageError(
                    f"--env {name}: a job's environment is shown to whoever sees the cluster's dashboard; give the nodes "
                    "a role (instance profile, service account), or set the variable when the cluster is started"
                )
        for text in (*self.arguments, *self._variables().values(), json.dumps(self.environment, default=str)):
            if _URL_WITH_PASSWORD.search(text):
                raise UsageError(
                    f"{_URL_WITH_PASSWORD.sub('://***@', text)}: holds a URL with a password; a job's command and environment "
                    "are shown to whoever sees the cluster's dashboard: take it out, and give the nodes a role"
                )
        if self.working_dir is not None and "working_dir" in self.environment:
            raise UsageError("--working-dir and the working_dir of --runtime-env: name the folder in one of them")
        if self._files() and "working_dir" in self.environment:
            raise UsageError(
                f"{next(iter(self._files().values()))}: with the working_dir of --runtime-env no spec is sent along; name the "
                "folder that holds it with --working-dir, or use a shipped spec"
            )
        for path in self._specs().values():
            read_mapping(path)
        for path in self._files().values():
            if self.working_dir is not None and not path.resolve().is_relative_to(self.working_dir.resolve()):
                raise UsageError(
                    f"{path}: lies outside --working-dir {self.working_dir}, so the cluster would not get it"
                )

    def _variables(self) -> dict[str, str]:
        return {**(self.environment.get("env_vars") or {}), **(self.variables or {})}

    def _words(self) -> list[str]:
        """The arguments, with ``--spec=FILE`` as two words."""
        words = []
        for text in self.arguments:
            name, sign, value = text.partition("=")
            words += [name, value] if sign and name in _SPEC_OPTIONS else [text]
        return words

    def _specs(self) -> dict[int, Path]:
        """The files of specs, here or shipped, by the place of the word that names them."""
        found = {}
        before = ""
        for place, word in enumerate(self._words()):
            is_bare = self.command in _SPEC_FIRST and (not before.startswith("-") or "=" in before)
            if before in _SPEC_OPTIONS or is_bare or word.endswith((".yaml", ".yml")):
                path = find_spec(word, COMMANDS[self.command])
                if path is not None:
                    found[place] = path
            before = word
        return found

    def _files(self) -> dict[int, Path]:
        """Of these, the files here, which have to go along."""
        words = self._words()
        return {place: path for place, path in self._specs().items() if path == Path(words[place])}

    @contextlib.contextmanager
    def packed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The job's entry point and runtime environment, valid inside the block."""
        words = self._words()
        with contextlib.ExitStack() as stack:
            folder = self.working_dir
            for place, path in self._files().items():
                if self.working_dir is not None:
                    words[place] = str(path.resolve().relative_to(self.working_dir.resolve()))
                else:
                    folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    words[place] = f"{place}/{path.name}"  # runs are called by the name of their spec
                    (folder / str(place)).mkdir()
                    shutil.copyfile(path, folder / words[place])
            variables = {STOP_WAIT: f"{STOP_WAIT_SECONDS}", **self._variables()}
            environment: dict[str, Any] = {**self.environment, "env_vars": variables}
            if folder is not None:
                environment["working_dir"] = str(folder)
            yield shlex.join([*_PROGRAM, self.command, *words]), environment
