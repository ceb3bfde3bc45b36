"""Which network the workers of a run talk over."""

from __future__ import annotations

import os

import psutil
import pytest
import ray

from genworker.training import network


def test_every_address_of_this_machine_has_its_interface() -> None:
    """Each interface's own address leads back to it, and a stranger's (a documentation address) to none."""
    for name, addresses in psutil.net_if_addrs().items():
        for known in addresses:
            found = network.interface_of(known.address)
            assert found is not None
            assert known.address in {other.address for other in psutil.net_if_addrs()[found]}, name
    assert network.interface_of("198.51.100.7") is None


@pytest.mark.parametrize(
    ("chosen", "address", "expected"),
    [
        (None, "127.0.0.1", network.interface_of("127.0.0.1")),
        ("eth7", "127.0.0.1", "eth7"),
        (None, "198.51.100.7", None),
    ],
)
def test_gloo_follows_the_node_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, address: str, expected: str | None
) -> None:
    """The node's interface, or the one that was chosen; where the address is nobody's, gloo chooses by itself."""
    monkeypatch.setenv(network.INTERFACE, chosen or "")
    if chosen is None:
        monkeypatch.delenv(network.INTERFACE)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    network.use_network_of_nodes()
    assert os.environ.get(network.INTERFACE) == expected
