"""Terraform files as plain dictionaries, and what an IAM policy of theirs allows.

In: a folder of .tf files. Out: resources and data by type and name, with quotes gone and references left as written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import hcl2

if TYPE_CHECKING:
    from pathlib import Path

BUCKET_ARN = "${aws_s3_bucket.this.arn}"


def load(folder: Path) -> dict[str, Any]:
    """All blocks of a folder by kind: ``variable`` by name, ``resource`` and ``data`` by type and name, others as lists."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.tf")):
        for kind, blocks in _plain(hcl2.loads(path.read_text(encoding="utf-8"))).items():
            for block in blocks:
                if kind in {"resource", "data", "variable", "output"}:
                    _merge(found.setdefault(kind, {}), block)
                else:
                    found.setdefault(kind, []).append(block)
    return found


def role_policies(folder: Path) -> dict[str, dict[str, Any]]:
    """The policy document of each role, by the role's name."""
    blocks = load(folder)
    (local,) = blocks["locals"]
    documents = blocks["data"]["aws_iam_policy_document"]
    pattern = re.compile(r"\$\{data\.aws_iam_policy_document\.(\w+)\.json\}")
    return {role: documents[pattern.sub(r"\1", text)] for role, text in local["roles"].items()}


def _merge(target: dict[str, Any], source: dict[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(target.get(key), dict):
            target[key] |= value
        else:
            target[key] = value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value[1:-1] if isinstance(value, str) and value[:1] == value[-1:] == '"' else value


@dataclass(frozen=True)
class Request:
    """One request as IAM sees it: an action on a key, or a listing of a prefix (None where a request names none)."""

    action: str
    key: str = ""
    prefix: str | None = None


def allowed_actions(document: dict[str, Any]) -> set[str]:
    """All S3 actions that a policy document names."""
    actions = {action for statement in document["statement"] for action in statement["actions"]}
    return {action for action in actions if action.startswith("s3:")}


def allows(document: dict[str, Any], request: Request) -> bool:
    """Whether a policy document of Allow statements lets ``request`` through; raises on what it cannot judge."""
    return any(_covers(statement, request) for statement in document["statement"])


def _covers(statement: dict[str, Any], request: Request) -> bool:
    assert statement.get("effect", "Allow") == "Allow"
    if request.action not in statement["actions"]:
        return False
    arn = f"{BUCKET_ARN}/{request.key}" if request.key else BUCKET_ARN
    if not any(fnmatchcase(arn, resource.replace("[", "[[]")) for resource in statement["resources"]):
        return False
    for condition in statement.get("condition", []):
        assert (condition["test"], condition["variable"]) == ("StringLikeIfExists", "s3:prefix")
        if request.prefix is not None and not any(fnmatchcase(request.prefix, like) for like in condition["values"]):
            return False
    return True
