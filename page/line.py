"""Requests wait here for the one thread that uses the models.

Work is done in rounds, each of them short: between two, requests whose client has hung up leave
the line, and newer ones come to the front. So nobody waits for an answer that nobody will read.
"""

import dataclasses
import queue
import threading

IN_LINE = 100        # requests that wait at most
PATIENCE = 120       # seconds without a word after which a request is given up
QUIET = 5            # seconds without a word after which whoever asked hears that it is at work


class Busy(Exception):
    """Too many requests wait, or this one waited too long."""


@dataclasses.dataclass(frozen=True)
class Call:
    """Who sent a request: when it had arrived (monotonic seconds), from where, and if they left."""

    arrived: float = 0.0
    client: str = ""
    gone: callable = bool  # () -> whether the client has hung up; bool() is False


class Job:
    """A request in line.

    work: a function of jobs, those in line that have the same one, most urgent first; it does a
    part of what they need, gives them what there is and ends those that are done. client: whose
    newest job goes first. key: a newer job with the same key ends this one, unless it is None.
    """

    def __init__(self, work, item, client="", key=None, gone=bool):
        self.work, self.item, self.client, self.key, self.gone = work, item, client, key, gone
        self.given, self.ended, self.outcome = queue.SimpleQueue(), False, None
        self.newer = 0  # jobs of the same client that came while this one was in line

    def give(self, part):
        """A part of the answer, for whoever asked; not None."""
        self.given.put(part)

    def end(self, outcome=None):
        """The answer is complete. outcome: an exception is raised where the answer is read."""
        if not self.ended:
            self.ended, self.outcome = True, outcome
            self.given.put(None)


class Line:
    """The jobs in line, and the thread that serves them."""

    def __init__(self):
        self.changed, self.jobs = threading.Condition(), []  # jobs: oldest first
        self.entered = 0  # how many ever were in line
        threading.Thread(target=self._work, daemon=True).start()

    def answer(self, job):
        """Puts a job in line and yields what it is given; None after each `QUIET` seconds of none.

        Raises Busy, or what the work raised. Whoever stops reading ends the job.
        """
        self._enter(job)
        try:
            while True:
                quiet = 0
                while True:
                    wait = min(QUIET, PATIENCE - quiet)
                    try:
                        part = job.given.get(timeout=wait)
                        break
                    except queue.Empty:
                        quiet += wait
                    if quiet >= PATIENCE:
                        raise Busy(f"no answer within {PATIENCE} s: try again, or use a smaller "
                                   "model")
                    yield None
                if part is None:
                    break
                yield part
            if isinstance(job.outcome, BaseException):
                raise job.outcome
        finally:
            job.end()

    def sweep(self):
        """Removes the jobs that have ended or whose client has hung up; whether any are left."""
        with self.changed:
            for job in self.jobs:
                if not job.ended and job.gone():
                    job.end()
            self.jobs = [job for job in self.jobs if not job.ended]
            return bool(self.jobs)

    def _enter(self, job):
        with self.changed:
            if job.gone():  # it may have come late: it must not take the place of a newer one
                return job.end()
            for older in self.jobs:
                older.newer += older.client == job.client
                if job.key is not None and older.key == job.key:
                    older.end()
            self.sweep()
            if len(self.jobs) >= IN_LINE:
                raise Busy("too many requests are waiting: try again in a moment")
            self.jobs.append(job)
            self.entered += 1
            self.changed.notify()

    def _work(self):
        while True:
            with self.changed:
                self.changed.wait_for(self.sweep)
                order = sorted(self.jobs, key=lambda job: job.newer)  # of two equal ones the older
            first, jobs = order[0], [job for job in order if job.work == order[0].work]
            try:
                first.work(jobs)
            except BaseException:  # one of them may not fit with the others: one by one
                for job in jobs:
                    try:
                        if not job.ended:
                            job.work([job])
                    except BaseException as error:  # the line goes on
                        job.end(error)
