"""OpenLineage events about jobs: what jobs read and write (`job`), said in events (`events`), sent beside them (`sender`)."""
