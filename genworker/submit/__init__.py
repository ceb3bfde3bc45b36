"""Commands of genworker as jobs of a Ray cluster: submitted once, followed, and found again.

A job's id follows from what it does and from a run id, so a second submit of the same finds the first: it is followed, or said
to be done. A job that failed is submitted anew under the next id; what it left is gone on from, because every command of
genworker resumes.
"""
