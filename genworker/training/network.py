"""Which network the workers of a run talk over: that of the Ray nodes that they run on.

Gloo would take the address that a host's name resolves to, which on many machines is a loopback address (Debian's 127.0.1.1,
an image's /etc/hosts); workers on two hosts then wait for each other in vain. The nodes' own addresses are known to work.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
import ray.train.torch

# gloo's name for its choice; who sets it on the nodes has chosen.
INTERFACE = "GLOO_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """The name of this host's network interface that has an IP address, or None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            return name
    return None


def use_network_of_nodes() -> None:
    """Make gloo in this process talk over the interface of its Ray node, unless the environment names another."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(INTERFACE, name)


class TorchConfig(ray.train.torch.TorchConfig):  # type: ignore[misc]
    """Ray Train's, whose process groups are made on the network of the nodes."""

    @property
    def backend_cls(self) -> type:
        """What sets up a group of workers."""
        return _Backend


class _Backend(ray.train.torch.TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_network_of_nodes)
        super().on_start(worker_group, backend_config)
