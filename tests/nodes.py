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
]
