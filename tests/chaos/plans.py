"""The plan that rounds of chaos carry out: a few small shards of a tiny generator."""

from __future__ import annotations

import torch

from genworker import bundle as bundles
from genworker.bulk.plan import Plan
from genworker.bulk.request import GenerateSpec, make_plan, numerics_for, sample_schema
from genworker.stores import open_store

NUM_SHARDS, SAMPLES_PER_SHARD = 6, 8


def plan_for(bundle: str, num_shards: int = NUM_SHARDS, format: str = "parquet") -> Plan:
    """The plan of ``num_shards`` shards of the bundle at a URL, with this machine's numerics."""
    values = {
        "bundle": bundle,
        "out": "-",
        "num_samples": num_shards * SAMPLES_PER_SHARD,
        "samples_per_shard": SAMPLES_PER_SHARD,
        "format": format,
    }
    spec = GenerateSpec.parse(values, origin="chaos")
    info = bundles.load_info(open_store(bundle))
    return make_plan(spec, info, numerics_for(spec, sample_schema(info), torch.device("cpu")))
