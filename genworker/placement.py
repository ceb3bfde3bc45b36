"""Where work may be placed, as specs say it: Ray's labels of nodes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

# Ray's rules, https://docs.ray.io/en/latest/ray-core/scheduling/labels.html, which are those of Kubernetes.
_WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"  # of a prefix, which is a domain
_NAME = re.compile(rf"(?![^/]{{254}})({_LABEL}(\.{_LABEL})*/)?{_WORD}")
_VALUE = re.compile(rf"!?({_WORD}|in\({_WORD}(, ?{_WORD})*\))")


def _are_labels(labels: dict[str, str]) -> dict[str, str]:
    for name, value in labels.items():
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise ValueError(
                f"{name}={value}: names and values of labels are letters, digits, '-', '_' and '.', 63 at most, with a letter "
                "or digit at both ends; a value may also be !value, in(a,b) or !in(a,b)"
            )
    return labels


NodeLabels = Annotated[dict[str, str], AfterValidator(_are_labels)]
