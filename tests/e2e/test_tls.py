"""A cluster of two hosts whose nodes talk TLS: jobs with a certificate run on it, others are told at once. Needs root."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority
from tests.host_scenarios import site_in
from tests.hosts import available
from tests.processes import running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="network namespaces cannot be made here; run as root to test TLS"),
]


def test_a_cluster_with_tls(tiny_bundle: str, tmp_path: Path) -> None:
    """A job with the certificate is published; a client without one, or with a stranger's, gets one error within a minute."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    job = [
        "genworker",
        "generate",
        tiny_bundle,
        "--num-samples=600",
        "--samples-per-shard=200",
        "--no-calibrate",
        "--out",
    ]
    with site_in(tmp_path, tiny_bundle, ours) as site, contextlib.ExitStack() as stack:
        head, environment = site.hosts["head"], site.network.environment(site.server)
        without = {name: value for name, value in environment.items() if "TLS" not in name}
        url = site.new_url()
        kept_out = [
            stack.enter_context(running(head.command([*job, f"{url}/{number}"]), tmp_path, variables))
            for number, variables in enumerate([without, without | theirs.certify(head.address)])
        ]
        for program in kept_out:
            assert program.wait() == 1
            assert time.monotonic() - program.started < 60
            assert program.stderr.count("Error: ") == 1
            assert "cannot join this cluster" in program.stderr
            assert "RAY_TLS_CA_CERT" in program.stderr
            assert "Traceback" not in program.stderr
        site.run(*job, f"{url}/ours")
        site.run("genworker", "verify", f"{url}/ours", "--resample=1")
        puts = site.puts(url, below="")
        assert puts
        assert all(f"{url.rpartition('/')[2]}/ours/" in key for key, _ in puts)
