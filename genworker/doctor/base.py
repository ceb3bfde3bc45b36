"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What a check saw.

    Attributes:
        name: of the check, a word or two.
        verdict: ``ok``; ``warn`` for what works, but slower or less safely; ``fail`` for what will stop a job.
        seen: what was found, in one line.
        fix: what to do about it; empty for ``ok``.
    """

    name: str
    verdict: Verdict
    seen: str
    fix: str = ""
