"""How fast `generate` is, against the limits of the machine and against what people write instead.

`python -m tests.benchmarks.generate --model all --json results.json` measures everything in one run;
`... .memory` and `... .uploads` are two questions of their own.
"""
