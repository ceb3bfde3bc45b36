"""The Dockerfile: checked by hadolint, and its pins held to pyproject.toml. Nothing here needs a Docker daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.infra.files import INFRA, ROOT

DOCKER = INFRA / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = {
    requirement.name: str(requirement.specifier).removeprefix("==")
    for requirement in (
        Requirement(line)
        for line in (DOCKER / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
}


def test_hadolint_has_nothing_to_say() -> None:
    check_with_hadolint(DOCKER / "Dockerfile")


def check_with_hadolint(path: Path) -> None:
    """Fail with what hadolint has to say of a Dockerfile."""
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program is not None, "hadolint is missing; install the dev extra: pip install -e '.[dev]'"
    done = subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_special() -> None:
    """The last stage ends as user 1000 (which KubeRay's pods and `ray up`'s mounts expect) and has a health check."""
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["1000:1000"]
    assert 'HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["probe-live"]' in last
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-slim-bookworm$", DOCKERFILE, re.MULTILINE)


def test_the_base_image_can_be_pinned_by_digest(tmp_path: Path) -> None:
    """Every stage that starts from outside takes the argument, also with a digest behind the tag."""
    pin = f"3.11.14-slim-bookworm@sha256:{'0' * 64}"
    pinned = re.sub(r"^ARG PYTHON=.*$", f"ARG PYTHON={pin}", DOCKERFILE, flags=re.MULTILINE)
    assert re.findall(r"^FROM (\S*[:/]\S*)", DOCKERFILE, re.MULTILINE) == ["python:${PYTHON}"] * 2
    (tmp_path / "Dockerfile").write_text(pinned, encoding="utf-8")
    check_with_hadolint(tmp_path / "Dockerfile")


def test_everything_that_is_installed_is_pinned() -> None:
    """constraints.txt names one version of every dependency, also of dependencies' own, that pyproject.toml allows."""
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["mlflow"] + extras["lineage"]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(PINNED[name]), f"{requirement} is pinned to {PINNED[name]}"
    assert closure(wanted) <= PINNED.keys()
    assert f"pip install torch=={PINNED['torch']}\n" in DOCKERFILE


def closure(requirements: list[str]) -> set[str]:
    """Names of all packages that ``requirements`` need here."""
    names: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform, or a build of CUDA
            continue
        names.add(name)
        for need in map(Requirement, needs):
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            if need.marker is None or any(need.marker.evaluate(environment) for environment in environments):
                waiting.append(need)
    return {name for name in names if not name.startswith("nvidia-") and name != "triton"}


def test_what_is_copied_exists_and_is_let_in() -> None:
    """Every COPY from the repository names a path that is there and that .dockerignore does not hide."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[0] == "*"
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE)
    paths = [path for words in copies for path in words.split()]
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists()
        assert any(path == allowed or path.startswith(f"{allowed}/") for allowed in let_in), path


@pytest.mark.parametrize("probe", ["probe-live", "probe-ready"])
def test_the_probes_follow_the_agent(probe: str) -> None:
    """A probe exits 0 on the agent's 200, and not on its 503, nor when nobody listens."""
    path = "/api/local_raylet_healthz" if probe == "probe-live" else "/api/healthz"
    replies = {"status": 200}
    asked = []

    class Agent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(replies["status"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    def run(port: int) -> int:
        environment = {"PATH": "/usr/bin:/bin", "RAY_DASHBOARD_AGENT_PORT": str(port)}
        return subprocess.run([DOCKER / probe], env=environment, check=False).returncode

    with HTTPServer(("127.0.0.1", 0), Agent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert run(server.server_port) == 0
            replies["status"] = 503
            assert run(server.server_port) != 0
        finally:
            server.shutdown()
    assert set(asked) == {path}
    assert run(server.server_port) != 0


def test_ray_answers_probes_without_a_token() -> None:
    """The two addresses are Ray's own, and open although all others want the token."""
    from ray.dashboard import http_server_agent

    source = Path(http_server_agent.__file__).read_text(encoding="utf-8")
    for probe in ("probe-live", "probe-ready"):
        (path,) = re.findall(r'(/api/\w+)"', (DOCKER / probe).read_text(encoding="utf-8"))
        assert f'"{path}"' in source
