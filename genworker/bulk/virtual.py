"""From a URL and what the user asks to a dataset that nobody stores.

In: the URL of a bundle and a request, or the URL of a dataset, finished or not, whose own plan is meant. Out: a
`VirtualDataset`. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genworker import bundle as bundles
from genworker.bulk import commit
from genworker.bulk.plan import BUNDLE_PREFIX, PLAN_KEY, Plan
from genworker.bulk.request import GenerateSpec, make_plan, numerics_for, sample_schema
from genworker.device import pick_device
from genworker.errors import UsageError
from genworker.reading.virtual import VirtualDataset
from genworker.stores import open_store

# What `genworker.open` or `genworker generate` take and what has no meaning here.
_NOT_VIRTUAL = {
    "verify": "says how stored shards are read",
    "on_bad_shard": "says how stored shards are read",
    "out": "says where to store samples",
    "bundle": "is the URL that is opened",
}


def open_virtual(
    url: str, *, plan: Plan | Mapping[str, Any] | None = None, use_gpu: bool = False, **request: Any
) -> VirtualDataset:
    """Open the samples of a plan without storing any.

    Args:
        url: of a bundle; or, with neither ``plan`` nor a request, of a dataset that was at least begun.
        plan: the plan to evaluate, or its JSON as `genworker generate --dry-run` prints it under "plan".
        use_gpu: evaluate on the GPU.
        request: instead of a plan, what `genworker generate` takes: num_samples, seed, labels, columns, codec, precision, ...

    Raises:
        UsageError: a plan and a request at once; a request that cannot be carried out; no plan at ``url``.
        BundleError: there is no bundle, or it is not the plan's.
        DeterminismError: the plan was made for another kind of machine, whose samples this one cannot make.
    """
    if misplaced := sorted(_NOT_VIRTUAL.keys() & request.keys()):
        raise UsageError(f"{misplaced[0]}: {_NOT_VIRTUAL[misplaced[0]]}; leave it out where nothing is stored")
    store = open_store(url)
    prefix = ""
    if plan is not None:
        if request:
            raise UsageError(f"plan and {', '.join(request)}: a plan says everything already; give one of the two")
        plan = plan if isinstance(plan, Plan) else Plan.parse(plan, origin="plan")
    elif request:
        spec = GenerateSpec.parse({"bundle": url, "out": "-", "use_gpu": use_gpu} | request, origin="open")
        info = bundles.load_info(store)
        plan = make_plan(spec, info, numerics_for(spec, sample_schema(info), pick_device(use_gpu=use_gpu)))
    else:
        plan = commit.read_plan(store)
        prefix = BUNDLE_PREFIX
        if plan is None:
            raise UsageError(
                f"{store.url}: there is no {PLAN_KEY}; give num_samples, and seed or what else `genworker generate` takes, "
                "to open the samples of a bundle"
            )
    bundle = bundles.load(store, prefix, with_scorer="score" in plan.columns)
    return VirtualDataset(bundle, plan, url=store.url, use_gpu=use_gpu)
