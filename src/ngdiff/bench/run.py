"""bench request -> all its trials done, several at once where there is room, and what came of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from ngdiff.bench.grid import MOST_WIDENINGS, Settings, searched, widened
from ngdiff.bench.inputs import Hashes, Inputs
from ngdiff.bench.request_faults import check
from ngdiff.bench.suites import suite_of
from ngdiff.bench.trials import (
    BenchRequest,
    Trial,
    evaluation_key,
    reporting,
    selection_score,
    tuning,
    tuning_trial,
)
from ngdiff.bench.variants import find_variant
from ngdiff.bench.worker import EVALUATION, GENERAL, RECORD, SPEC
from ngdiff.data.benchmarks import as_text
from ngdiff.errors import Interrupted
from ngdiff.evaluation.metrics import changed_definitions
from ngdiff.evaluation.result import texts_file
from ngdiff.runs.signals import StopWish, wish_to_stop
from ngdiff.runs.workplace import Workplace
from ngdiff.system.cache import cache_key
from ngdiff.system.events import log
from ngdiff.system.lock import alone_in
from ngdiff.system.output import write_json
from ngdiff.system.progress import Meter
from ngdiff.system.untrusted import first_line

STATUS, LOG = "trial.json", "log.txt"
_LAST_WORDS = 2000
_LOOK_SECONDS = 0.5
"""From one look for a signal to the next."""


@dataclass
class Outcome:
    """What became of one trial, or of one of the models that everything is compared with.

    Args:
        name: of the method's variant, or ``target`` and ``retrained``.
        split: of TOFU, or the name of the questions to tune on.
        folder: where its files are.
        trial: None for ``target`` and ``retrained``.
        error: its last words, where it failed.
        given: the evaluation that was given in place of the retrained model; ``folder`` is where that lies.
    """

    name: str
    split: str
    folder: Path
    trial: Trial | None = None
    error: str | None = None
    given: Path | None = None

    def read(self, name: str) -> dict[str, Any] | None:
        """Return one of its files, where it is there."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@dataclass
class BenchResult:
    """Everything that came of a benchmark.

    Args:
        request: the benchmark's.
        compared: the target and the retrained model, evaluated.
        tuned: the trials that chose settings.
        reported: the trials that count.
        chosen: name of the questions to tune on and method to the settings that were chosen.
    """

    request: BenchRequest
    compared: list[Outcome] = field(default_factory=list)
    tuned: list[Outcome] = field(default_factory=list)
    reported: list[Outcome] = field(default_factory=list)
    chosen: dict[tuple[str, str], Settings] = field(default_factory=dict)

    @property
    def failed(self) -> list[Outcome]:
        """The trials that failed; they are tried again when the benchmark is run again."""
        return [outcome for outcome in [*self.compared, *self.tuned, *self.reported] if outcome.error]


def run(request: BenchRequest) -> BenchResult:
    """Do every trial that is not done yet.

    Raises:
        RequestError: something in the request is wrong.
        Interrupted: a signal ended it; running trials were saved.
    """
    check(request)
    with alone_in(request.output), wish_to_stop() as wish:
        return _run(request, wish)


def _run(request: BenchRequest, wish: StopWish) -> BenchResult:
    result = BenchResult(request)
    workers = _Workers(request, Inputs(request), wish)
    retrained = workers.do(workers.compared("retrained"), "Retrained model")
    workers.failed = {outcome.split for outcome in retrained if outcome.error}
    result.compared = [*_given(request), *retrained, *workers.do(workers.compared("target"), "Target")]
    tuned = [workers.spec(trial) for trial in tuning(request)]
    names = {job.outcome.name for job in tuned}
    reported = reporting(request, {})
    ready = [workers.spec(trial) for trial in reported if trial.method not in names]
    waiting = _Waiting(workers, tuned)
    later = len(reported) - len(ready)
    done = workers.do([*ready, *tuned], "Trials", waiting.follow, later)
    result.tuned = waiting.tuned
    result.chosen = choose(result.tuned)
    result.reported = _in_order(request, [one for one in done if one.trial and one.trial.evaluate])
    return result


class _Waiting:
    """Reported runs that wait for their settings: each begins once the last trial that chooses them is over.

    Where the best of a setting lies at an edge of what was tried, further trials go beyond it first.

    Args:
        workers: who make the jobs.
        tuned: the trials that choose.
    """

    def __init__(self, workers: _Workers, tuned: Sequence[_Job]) -> None:
        self._workers = workers
        self._asked: defaultdict[tuple[str, str], list[Outcome]] = defaultdict(list)
        for job in tuned:
            self._asked[_chooses(job.outcome)].append(job.outcome)
        self._over: Counter[tuple[str, str]] = Counter()
        self._rounds: Counter[tuple[str, str]] = Counter()

    @property
    def tuned(self) -> list[Outcome]:
        """The trials that choose, those that went beyond an edge with them."""
        return [outcome for outcomes in self._asked.values() for outcome in outcomes]

    def follow(self, outcome: Outcome) -> list[_Job]:
        """Take in a run that is over; return those that may begin now."""
        if outcome.trial is None or outcome.trial.evaluate:  # a reported run, which chooses nothing
            return []
        which = _chooses(outcome)
        self._over[which] += 1
        if self._over[which] < len(self._asked[which]):
            return []
        request, chosen = self._workers.request, choose(self._asked[which])
        beyond = self._beyond(which, chosen)
        if beyond:
            return beyond
        return [
            self._workers.spec(trial)
            for trial in reporting(request, chosen)
            if (request.tuned_on(trial.split), trial.method) == which
        ]

    def _beyond(self, which: tuple[str, str], chosen: Mapping[tuple[str, str], Settings]) -> list[_Job]:
        """Return the trials beyond the edges of what was tried; none after enough rounds of them."""
        if which not in chosen or self._rounds[which] == MOST_WIDENINGS:
            return []
        split, name = which
        method = find_variant(name).method
        settings = [tried(outcome.trial) for outcome in self._asked[which] if outcome.trial]
        self._rounds[which] += 1
        jobs = [
            self._workers.spec(
                tuning_trial(
                    self._workers.request, split, name, f"tune-wider-{self._rounds[which]}-{number}", found
                )
            )
            for number, found in enumerate(widened(method, settings, chosen[which]))
        ]
        self._asked[which] += [job.outcome for job in jobs]
        return jobs


def _chooses(outcome: Outcome) -> tuple[str, str]:
    return outcome.split, outcome.name


def _in_order(request: BenchRequest, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Sort reported runs by split, method and stopping in the order requested, then by seed."""
    places = {trial.place: number for number, trial in enumerate(reporting(request, {}))}
    return sorted(outcomes, key=lambda outcome: places[outcome.trial.place] if outcome.trial else -1)


def choose(tuned: Sequence[Outcome]) -> dict[tuple[str, str], Settings]:
    """Return, for each split and method, the settings of the trial with the best selection score."""
    best: dict[tuple[str, str], tuple[float, Settings]] = {}
    for outcome in tuned:
        record = outcome.read(RECORD)
        score = None if record is None else selection_score(record)
        if outcome.error or score is None or outcome.trial is None:
            continue
        key = outcome.split, outcome.name
        if key not in best or score > best[key][0]:
            best[key] = score, tried(outcome.trial)
    return {key: settings for key, (_, settings) in best.items()}


def tried(trial: Trial) -> Settings:
    """Return the settings that a trial tries, in the form in which they were drawn."""
    return searched(find_variant(trial.method).method, trial.settings)


@dataclass(frozen=True)
class _Job:
    outcome: Outcome
    spec: dict[str, Any]
    key: str


def _given(request: BenchRequest) -> list[Outcome]:
    """Return the retrained models that were given by their evaluations."""
    found = ((split, request.reference(split)) for split in request.splits)
    files = [(split, Path(name).expanduser()) for split, name in found if name and name.endswith(".json")]
    return [Outcome("retrained", split, path.parent, given=path) for split, path in files]


class _Workers:
    """Runs jobs in processes of their own, a GPU or a share of the cores each; they end with this process."""

    def __init__(self, request: BenchRequest, inputs: Inputs, wish: StopWish) -> None:
        self.request, self.inputs, self._wish = request, inputs, wish
        self.failed: set[str] = set()
        """Splits whose retrained model could not be evaluated: nothing is compared with it."""
        gpus = torch.cuda.device_count()
        self.count = request.jobs or max(1, gpus)
        self.gpus: SimpleQueue[int] = SimpleQueue()
        for place in range(self.count):
            self.gpus.put(place % gpus if gpus else -1)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ending = False

    def compared(self, name: str) -> list[_Job]:
        """Return the evaluations of the target, or of the retrained models that were given as models."""
        jobs = []
        for split in self.request.splits:
            model = self.request.model if name == "target" else self.request.reference(split)
            if model is None or model.endswith(".json"):
                continue
            reference = None if name == "retrained" else self._reference(split)
            evaluation = self._evaluation(split, reference)
            spec = {"model": model, "unlearn": None, "evaluate": evaluation, "keep_model": True}
            folder = self.request.output / "models" / split / name
            measured = evaluation_key(self.request, self._hashes(split, reference is not None))
            key = cache_key(self.inputs.model(model), measured, self.request.precision, changed_definitions())
            jobs.append(_Job(Outcome(name, split, folder), spec, key))
        return jobs

    def _reference(self, split: str) -> str | None:
        given = self.request.reference(split)
        if given is None or split in self.failed:
            return None
        made = str(self.request.output / "models" / split / "retrained" / EVALUATION)
        return given if given.endswith(".json") else made

    def _evaluation(self, split: str, reference: str | None) -> dict[str, Any]:
        request = self.request
        return {
            "request": {
                **suite_of(request).asks(request, split, self.inputs.folder(split)),
                "reference": reference,
                "paraphrases": request.paraphrases,
                "gradient_norms": request.gradient_norms,
            },
            "batch_size": request.batch_size,
            "precision": request.precision,
            "trust_remote_code": request.trust_remote_code,
        }

    def _hashes(self, split: str, compared: bool) -> Hashes:
        found = self.inputs.of(split)
        return found if compared else replace(found, reference=None)

    def spec(self, trial: Trial) -> _Job:
        """Return what a trial's process has to be told."""
        request = self.request
        steps = suite_of(request).steps(request, trial.split)
        reference = self._reference(trial.split) if trial.evaluate else None
        spec = {
            "model": request.model,
            "unlearn": {
                "steps": [asdict(step) for step in steps],
                "settings": {**trial.settings, "method": find_variant(trial.method).row},
                "lora": request.lora,
                "precision": request.precision,
                "trust_remote_code": request.trust_remote_code,
                "folders": as_text(request.folders),
            },
            "evaluate": self._evaluation(trial.split, reference) if trial.evaluate else None,
            "keep_model": request.keep_models and trial.evaluate,
        }
        outcome = Outcome(trial.method, trial.split, request.output / trial.place, trial)
        key = trial.key(request, self._hashes(trial.split, reference is not None))
        return _Job(outcome, spec, key)

    def do(
        self,
        jobs: Sequence[_Job],
        title: str,
        follow: Callable[[Outcome], list[_Job]] = lambda outcome: [],
        later: int = 0,
    ) -> list[Outcome]:
        """Do the jobs that are not done yet; a failure is written down and stops nothing else.

        Args:
            jobs: what to do.
            title: of the progress bar.
            follow: what may be done, too, once a job is over.
            later: how many jobs will follow.

        Returns:
            The outcomes of all.
        """
        if not jobs:
            return []
        found: list[Outcome] = []
        with Meter(title, len(jobs) + later) as meter, ThreadPoolExecutor(self.count) as pool:
            running: set[Future[_Job]] = set()

            def begin(new: Sequence[_Job]) -> None:
                for job in new:
                    if _is_done(job):
                        over(job)
                    else:
                        running.add(pool.submit(self._one, job))

            def over(job: _Job) -> None:
                status = _status(job.outcome.folder)
                job.outcome.error = status.get("error") if status.get("key") == job.key else "it was not run"
                found.append(job.outcome)
                meter.advance(1, job.outcome.name)
                more = follow(job.outcome)
                meter.total += sum(not one.spec["evaluate"] for one in more)  # beyond an edge: not foreseen
                begin(more)

            try:
                begin(jobs)
                while running:
                    if self._wish.signum is not None:
                        raise Interrupted(self._wish.signum)
                    done, running = wait(running, _LOOK_SECONDS, FIRST_COMPLETED)
                    for future in done:
                        over(future.result())
            except BaseException:
                self._end(pool)
                raise
        return found

    def _end(self, pool: ThreadPoolExecutor) -> None:
        """Have the workers save what they do and end, and nothing more begin; a second signal kills them."""
        self._send(subprocess.Popen.terminate)
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except BaseException:
            self._send(subprocess.Popen.kill)
            raise

    def _send(self, end: Callable[[subprocess.Popen[bytes]], None]) -> None:
        with self._lock:
            self._ending = True
            for process in self._running:
                end(process)

    def _one(self, job: _Job) -> _Job:
        try:
            self._work(job)
        except OSError as error:  # no room for its files, say: one trial fails, and the others go on
            log.note(f"{job.outcome.folder}: {first_line(error)}")
        return job

    def _work(self, job: _Job) -> None:
        folder = job.outcome.folder
        folder.mkdir(parents=True, exist_ok=True)
        if _status(folder).get("key") != job.key:
            _clear(folder)
        write_json(job.spec, folder / SPEC)
        write_json({"key": job.key, "error": "it was interrupted"}, folder / STATUS)
        gpu, started = self.gpus.get(), time.monotonic()
        try:
            code = self._process(folder, gpu)
        finally:
            self.gpus.put(gpu)
        if self._ending and code != 0:
            return  # its status says that it was interrupted
        error = None if code == 0 else _last_words(folder, code)
        write_json({"key": job.key, "seconds": time.monotonic() - started, "error": error}, folder / STATUS)

    def _process(self, folder: Path, gpu: int) -> int:
        threads = max(1, (os.cpu_count() or 1) // self.count)
        # who sets the number of threads knows what else is running
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if gpu >= 0:
            seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            environment["CUDA_VISIBLE_DEVICES"] = seen[gpu] if seen else str(gpu)
        with (folder / LOG).open("ab") as log:
            with self._lock:
                if self._ending:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    _command(folder),
                    stdin=subprocess.PIPE,  # which closes when this process is gone, however it ended
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for this process, which tells the worker once
                )
                self._running.add(process)
            try:
                with process:
                    return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "ngdiff.bench.worker", str(folder)]


def _status(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_done(job: _Job) -> bool:
    status, folder = _status(job.outcome.folder), job.outcome.folder
    lacking = job.spec["keep_model"] and job.spec["unlearn"] is not None and not (folder / "model").is_dir()
    return status.get("key") == job.key and status.get("error") is None and not lacking


def _clear(folder: Path) -> None:
    """Remove what an earlier trial with other settings left in a trial's own folder."""
    for place in (folder / "model", Workplace(folder / "model").folder):  # done, and begun
        shutil.rmtree(place, ignore_errors=True)
    texts = texts_file(folder / EVALUATION).name
    for name in (RECORD, EVALUATION, texts, GENERAL, STATUS, LOG):
        (folder / name).unlink(missing_ok=True)


def _last_words(folder: Path, code: int) -> str:
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip()
    return f"exit code {code}: {text}"
