"""A job's state as an OpenLineage event, in the classes of the openlineage-python client.

In: a `Job`, a state, the error that ended it. Out: a run event with standard facets, and with two of our own for what the
standard has no words for: ``genworker_run`` and ``genworker_digests``. Only `genworker.lineage.sender` imports this module,
because the client is an extra.
"""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from typing import Any

from openlineage.client import event_v2, facet_v2

from genworker import __version__
from genworker.lineage.job import Dataset, Job, without_secrets

PRODUCER = f"pkg:pypi/genworker@{__version__}"
_MAX_MESSAGE_CHARACTERS = 4_000

facet_v2.set_producer(PRODUCER)


def event_of(
    job: Job, run_id: str, state: str, parent: tuple[str, str, str] | None = None, error: Exception | None = None
) -> event_v2.RunEvent:
    """The event of ``job``'s try ``run_id``.

    ``state`` is START, COMPLETE, FAIL or ABORT, ``parent`` the namespace, job and run id of what started the job.
    """
    run: dict[str, Any] = {
        "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet(
            version=version("ray"), name="ray", openlineageAdapterVersion=__version__
        ),
        "genworker_run": facet_v2.RunFacet().with_additional_properties(
            command=job.command, resumeId=job.resume_id, versions=_versions(), **job.run
        ),
    }
    if job.date is not None:
        start = datetime.datetime.combine(job.date, datetime.time(), datetime.UTC)
        run["nominalTime"] = facet_v2.nominal_time_run.NominalTimeRunFacet(nominalStartTime=start.isoformat())
    if error is not None:
        message = without_secrets(f"{type(error).__name__}: {error}")[:_MAX_MESSAGE_CHARACTERS]
        run["errorMessage"] = facet_v2.error_message_run.ErrorMessageRunFacet(message, "python")
    if parent is not None:
        run["parent"] = facet_v2.parent_run.ParentRunFacet(
            run=facet_v2.parent_run.Run(parent[2], None), job=facet_v2.parent_run.Job(*parent[:2], None)
        )
    job_type = facet_v2.job_type_job.JobTypeJobFacet("BATCH", "GENWORKER", job.command.upper())
    written: dict[str, Any] = {}
    if numbers := job.output.statistics:
        written["outputStatistics"] = facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            numbers.get("rowCount"), numbers.get("size"), numbers.get("fileCount")
        )
    return event_v2.RunEvent(
        eventType=event_v2.RunState(state),
        eventTime=datetime.datetime.now(datetime.UTC).isoformat(),
        producer=PRODUCER,
        run=event_v2.Run(run_id, facets=run),
        job=event_v2.Job(job.namespace, job.name, facets={"jobType": job_type}),
        inputs=[event_v2.InputDataset(job.input.namespace, job.input.name, facets=_facets(job.input))],
        outputs=[
            event_v2.OutputDataset(
                job.output.namespace, job.output.name, facets=_facets(job.output), outputFacets=written
            )
        ],
    )


def _facets(dataset: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {
        "datasetType": facet_v2.dataset_type_dataset.DatasetTypeDatasetFacet(dataset.kind, dataset.sub_type or None)
    }
    if dataset.version:
        found["version"] = facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet(dataset.version)
    if dataset.digests:
        found["genworker_digests"] = facet_v2.DatasetFacet().with_additional_properties(**dataset.digests)
    if dataset.fields:
        names = [facet_v2.schema_dataset.SchemaDatasetFacetFields(*pair) for pair in dataset.fields.items()]
        found["schema"] = facet_v2.schema_dataset.SchemaDatasetFacet(names)
    return found


def _versions() -> dict[str, str]:
    return {"genworker": __version__, "python": platform.python_version(), "torch": version("torch")}
