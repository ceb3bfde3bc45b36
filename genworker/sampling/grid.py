"""How shards lie on the grid of micro-batches, and what it costs where they end inside one.

In: a plan. Out: which share of the evaluated samples is stored, and a word where it is small. A micro-batch in which a shard
ends is evaluated for that shard and again for the next one, whole each time, so that both have the same bits.
"""

from __future__ import annotations

import math

from genworker.bulk.plan import Plan

_WORTH_A_WORD = 1.1  # times the work that there has to be


def useful_share(plan: Plan) -> float:
    """The share of all evaluated samples that is stored, in (0, 1]."""
    return plan.num_samples / (_num_evaluations(plan) * plan.numerics.micro_batch)


def wasteful_size(plan: Plan) -> str:
    """One line that names a better samples_per_shard where the plan's costs over a tenth more work; else empty."""
    size, batch = plan.samples_per_shard, plan.numerics.micro_batch
    work = _num_evaluations(plan) / _num_micro_batches(plan)
    if work <= _WORTH_A_WORD:
        return ""
    better = max(1, round(size / batch)) * batch
    return (
        f"samples_per_shard {size}: shards end inside micro-batches of {batch}, which are evaluated again for the next "
        f"shard, {work:.1f} times the work in all; a multiple of {batch}, such as {better}, costs none of that"
    )


def _num_evaluations(plan: Plan) -> int:
    """How many micro-batches are evaluated for all shards together."""
    ends = plan.num_shards - 1  # of shards that another one follows
    batch = plan.numerics.micro_batch
    # The end of every so manieth shard is that of a micro-batch too.
    period = batch // math.gcd(plan.samples_per_shard, batch)
    return _num_micro_batches(plan) + ends - ends // period


def _num_micro_batches(plan: Plan) -> int:
    return -(-plan.num_samples // plan.numerics.micro_batch)
