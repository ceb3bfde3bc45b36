"""The files in infra/ and cluster.yaml, held to what reads them."""
