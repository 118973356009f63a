"""Decides of each failure of a job whether the job is at fault or a dependency, and gives back attempts spent wrongly.

The rules stand in ``resilience/systemic.py``; here they meet the job table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from convo.analysis.analyze import PartFailure
from convo.conversation.model import PartName
from convo.dependencies import row_name
from convo.errors import ConvoError, RemoteError
from convo.observe import log_records
from convo.resilience.dependency import JobDependency, is_outage
from convo.resilience.systemic import SpentAttempt
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs


class Blame:
    """Whose fault the failures of jobs are, as far as this process has seen."""

    def __init__(self, jobs: Jobs, dependencies: Mapping[str, JobDependency]) -> None:
        self._jobs = jobs
        self._dependencies = dependencies

    def own(self, lease: Lease, failures: Mapping[PartName, PartFailure]) -> dict[PartName, PartFailure]:
        """Return the failures that are the job's own; all others are outages of their dependencies."""
        return {name: failure for name, failure in failures.items() if not self._is_outage(lease, failure.error)}

    def _is_outage(self, lease: Lease, error: ConvoError) -> bool:
        dependency = self._dependencies.get(row_name(error.dependency)) if isinstance(error, RemoteError) else None
        if dependency is None or not isinstance(error, RemoteError):
            return is_outage(error)
        return dependency.is_at_fault(error, lease.seq)

    def spent(self, lease: Lease, failures: Mapping[PartName, PartFailure]) -> None:
        """Note that the job has spent an attempt on its own failures among these: later ones may show another fault."""
        attempt = SpentAttempt()
        for dependency, error in self._remote(failures):
            dependency.note_spent(error, lease.seq, attempt)

    def _remote(self, failures: Mapping[PartName, PartFailure]) -> Iterator[tuple[JobDependency, RemoteError]]:
        for failure in failures.values():
            error = failure.error
            if isinstance(error, RemoteError) and row_name(error.dependency) in self._dependencies:
                yield self._dependencies[row_name(error.dependency)], error

    async def give_back(self) -> None:
        """Give back all attempts that are owed; what cannot be stored now is owed until the next time."""
        for dependency in self._dependencies.values():
            owed = dependency.take_owed()
            if owed:
                try:
                    await self._jobs.give_back(owed, dependency.name)
                except ConvoError as error:
                    dependency.owe_again(owed)
                    log_records.ending_failed(conversation_id="*", reason=error.detail)
