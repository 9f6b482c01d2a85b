"""Workers of a study as jobs of a cluster: each takes what nobody has taken, and ends when nothing is left."""

from __future__ import annotations

from pathlib import Path

from kswapctl.errors import TeamError, UsageError
from kswapctl.operations.studies.run import prepare, work_alone
from kswapctl.operations.studies.schema import Study
from kswapctl.progress import Progress

MINUTES = 24 * 60
"""Longest time a job asks for; what it has not done by then, the same command goes on with."""


def run_jobs(study: Study, given: dict[str, str], folder: Path, jobs: int, cluster: str, progress: Progress) -> None:
    """Submit ``jobs`` workers to ``cluster`` (slurm, or local for a try) and wait for them.

    ``folder`` must be one that all machines share, and so must what the study needs.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("--cluster needs submitit", "in a clone: uv sync --extra cluster") from error
    prepare(study, given, folder)
    try:
        executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=cluster)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"cluster {cluster!r} cannot be used here ({error})", "use slurm, or local") from error
    executor.update_parameters(timeout_min=MINUTES, cpus_per_task=1, name=f"kswapctl-{study.name}")
    submitted = [
        executor.submit(work_alone, study.model_dump_json(), given, str(folder.resolve())) for _ in range(jobs)
    ]
    progress.note(f"submitted {', '.join(job.job_id for job in submitted)}; their output is in {folder / 'jobs'}")
    for job in submitted:
        if failure := job.exception():
            raise TeamError(f"job {job.job_id} failed: {str(failure).splitlines()[-1]}", f"see {job.paths.stderr}")
