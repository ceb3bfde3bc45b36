"""Certificates for Ray's TLS, made by the commands of the README: an authority, and a certificate for each host."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.readme import README


def _commands(marker: str) -> str:
    """The README's shell block after a marker."""
    found = re.search(rf"<!-- {marker} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert found, marker
    return found[1]


class Authority:
    """One certificate authority, whose files lie in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._run(_commands("authority"))

    def certify(self, address: str) -> dict[str, str]:
        """Ray's variables for the host of an address, whose certificate is made when it is first asked for."""
        folder = self._folder / address
        if not folder.exists():
            folder.mkdir()
            self._run(re.sub(r"^NODE=.*$", f"NODE={address}", _commands("certificate"), flags=re.MULTILINE))
            for name in ("tls.crt", "tls.key"):
                (self._folder / name).rename(folder / name)
        exported = re.search(r"^export (RAY_USE_TLS=1 .*)$", README, re.MULTILINE)
        assert exported
        variables = dict(word.split("=", 1) for word in exported[1].split())
        files = {"ca.crt": self._folder / "ca.crt", "tls.crt": folder / "tls.crt", "tls.key": folder / "tls.key"}
        return {name: str(files.get(Path(value).name, value)) for name, value in variables.items()}

    def _run(self, commands: str) -> None:
        subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=self._folder, check=True, capture_output=True)
