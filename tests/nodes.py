"""How tests start Ray nodes on this machine: what a node is told, and how soon a lost one is noticed."""

from __future__ import annotations

# A node that is gone is noticed within seconds, not half a minute.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
# Any free ports, so that other clusters on this machine are not in the way.
NODE = [
    "--block",
    "--num-cpus=1",
    "--node-ip-address=127.0.0.1",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--disable-usage-stats",
    "--include-log-monitor=false",  # nobody reads it, and each takes a few percent of a processor
]


def drain(which: str, seconds: int) -> str:
    """A Python program that gives Ray's notice of a preemption to a node of the cluster at its first argument.

    ``which`` is an expression that is true for that ``node`` of `ray.nodes` alone; it goes away in ``seconds``.
    """
    return f"""
import subprocess, sys, ray
ray.init(sys.argv[1], logging_level="ERROR")
(node,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and {which}]
command = ["ray", "drain-node", "--address", sys.argv[1], "--node-id", node, "--deadline-remaining-seconds", "{seconds}"]
command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
sys.exit(subprocess.run(command).returncode)
"""
