"""What a process that jobs are forked from does before, so that a job takes a fraction of a second: loads, and makes a shard.

It opens no connection.
"""

from __future__ import annotations

import os

from genworker.stores import s3_client
from tests.chaos import jobs, plans
from tests.fakes.bundle import save_bundle

bundle = save_bundle("memory://preload/bundle")
jobs.publish("memory://preload/out", bundle, plans.plan_for(bundle, num_shards=1))
# Parses the description of S3, which all clients of a process share.
os.environ["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
s3_client.make_client().close()
del os.environ["AWS_ENDPOINT_URL_S3"]
