"""Work on several hosts with networks of their own, which are killed, cut off, paused, announced to go, or join late.

What happens and what is checked stands with each scenario in `tests.host_scenarios`. Needs root, for network namespaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import host_scenarios as scenarios
from tests.hosts import available

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not available(), reason="network namespaces cannot be made here; run as root to test several hosts"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: str) -> Iterator[scenarios.Site]:
    """A head, an object store and one worker host."""
    with scenarios.site_in(tmp_path_factory.mktemp("hosts"), tiny_bundle) as site:
        yield site


# The last two share a second host, so they come in this order.
@pytest.mark.parametrize(
    "scenario",
    [scenarios.raylet_killed, scenarios.cut_off, scenarios.announced, scenarios.late, scenarios.training_killed],
    ids=lambda scenario: scenario.__name__,
)
def test_hosts_come_and_go(site: scenarios.Site, scenario: Callable[[scenarios.Site], scenarios.Outcome]) -> None:
    """What is made is whole, equal to what an undisturbed job makes, and made by the first command."""
    assert scenario(site).published
