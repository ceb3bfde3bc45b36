"""The commands that README.md shows, line by line."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines(heading: str = "") -> list[str]:
    """All commands of README's bash blocks, or those of the first block below a heading; continued lines are one."""
    text = README.split(f"\n## {heading}\n")[1] if heading else README
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[: 1 if heading else None]
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line and line[0] != "#"]
