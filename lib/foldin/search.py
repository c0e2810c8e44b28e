"""Settings found by trying: rank, regularisation, alpha, decay and event weights, scored on held-out events.

Optuna proposes (its TPE sampler, which learns from the trials so far), Spark trains and scores, `trials` remembers:
a search that was ended goes on where it was, on the same events, until its budget is used up. The events from the
judge's split on are never touched: what is found is judged on events that no trial has seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import time
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from foldin.config import Config
from foldin.errors import FoldinError, PrerequisiteError, reason_of
from foldin.histories import HistoryDefinition
from foldin.judging import HeldOut, sides, split_time
from foldin.registry import Model
from foldin.schemas import EVENTS, TRIALS
from foldin.tables import Tables
from foldin.trimming import Hold

if TYPE_CHECKING:
    import optuna

__all__ = ["Found", "Study", "Trial", "apply", "as_toml", "configured", "search"]

log = logging.getLogger("foldin.search")

Settings = dict[str, float]
Train = Callable[[DataFrame, Config], Model]


@dataclass(frozen=True)
class Trial:
    """What was tried, and how it did.

    Attributes:
        settings: by key: train.rank, train.reg_param, train.alpha, history.half_life_days, events.weights.<type>.
        score: NDCG on the held-out events; None for a trial that failed, with the reason in `failure`.
    """

    number: int
    settings: Settings
    score: float | None
    seconds: float
    failure: str | None = None


@dataclass(frozen=True)
class Study:
    """One search on one state of `events`: trains before `split_us`, scores from there to `until_us`."""

    name: str
    cut_version: int
    split_us: int
    until_us: int


@dataclass(frozen=True)
class Found:
    """The outcome of a search: the configuration of the best trial, and that of the settings as they were."""

    config: Config
    study: Study
    best: Trial
    before: Trial | None


def search(tables: Tables, config: Config, cut_version: int, until_us: int, train: Train) -> Found:
    """Try settings until the budget is used up; a study with budget left is gone on with, on its own events.

    Args:
        until_us: event_time from which on events are left to the judge.
        train: a model of the events and the settings that it is given.

    Raises:
        FoldinError: no trial got a score, or there are no events to hold out.
        PrerequisiteError: Optuna is not installed.
    """
    optuna = _optuna()
    study, done = _open_study(tables, config, cut_version, until_us)
    hold = Hold(tables, study.name, EVENTS, study.cut_version)
    hold.rest()  # beyond this run: the study may be gone on with
    before, after = sides(tables.read(EVENTS, version=study.cut_version), study.split_us)
    after = after.where(F.unix_micros("event_time") < study.until_us)
    definition = HistoryDefinition.of(config)
    held_out = HeldOut.of(before, after, definition.types, definition.max_events, config.judge.k)

    def attempt(number: int, settings: Settings) -> Trial:
        started = time.monotonic()
        try:
            score = held_out.score(train(before, apply(config, settings))).ndcg
            failure = None if math.isfinite(score) else "nobody took anything new in the held-out events"
        except Exception as error:  # settings that cannot be trained are an outcome too
            score, failure = math.nan, reason_of(error)
            log.debug("trial %d", number, exc_info=True)
        found = Trial(number, settings, None if failure else score, time.monotonic() - started, failure)
        _append(tables, study, f"NDCG@{config.judge.k}", found)
        return found

    try:
        trials = _Search(optuna, config, done, attempt).run()
    finally:
        held_out.done()
    if len(trials) >= config.search.trials:
        hold.drop()
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        why = trials[0].failure if trials else "no trial fits into the budget"
        raise FoldinError(f"the search found nothing: none of {len(trials)} trials has a score ({why})")
    best = max(scored, key=lambda trial: (trial.score, -trial.number))
    return Found(apply(config, best.settings), study, best, next((t for t in scored if t.number == 0), None))


def configured(config: Config) -> Settings:
    """The settings of a configuration that a search varies."""
    settings: Settings = {"train.rank": config.train.rank, "train.reg_param": config.train.reg_param}
    if config.train.mode == "implicit":  # an explicit strength is the last rating: neither weighed nor decayed
        settings["train.alpha"] = config.train.alpha
        settings["history.half_life_days"] = config.history.half_life_days
        settings |= {f"events.weights.{name}": config.events.weights[name] for name in _varied(config)}
    return settings


def apply(config: Config, settings: Settings) -> Config:
    """The configuration with these settings."""
    weights = dict(config.events.weights)
    sections: dict[str, dict[str, Any]] = {"train": {}, "history": {}}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if section == "events":
            weights[name.removeprefix("weights.")] = value
        else:
            sections[section][name] = int(value) if name == "rank" else value
    return config.model_copy(
        update={
            "events": config.events.model_copy(update={"weights": weights}),
            "train": config.train.model_copy(update=sections["train"]),
            "history": config.history.model_copy(update=sections["history"]),
        }
    )


def as_toml(config: Config) -> list[str]:
    """The lines of a configuration file that say these settings; weights are replaced as a whole."""
    weights = ", ".join(f"{json.dumps(name)} = {weight:.6g}" for name, weight in config.events.weights.items())
    train = {"rank": config.train.rank, "reg_param": f"{config.train.reg_param:.6g}"}
    if config.train.mode == "explicit":
        return ["[train]", *(f"{key} = {value}" for key, value in train.items())]
    train["alpha"] = f"{config.train.alpha:.6g}"
    return [
        "[events]", f"weights = {{ {weights} }}",
        "[history]", f"half_life_days = {config.history.half_life_days:.6g}",
        "[train]", *(f"{key} = {value}" for key, value in train.items()),
    ]  # fmt: skip


class _Search:
    """Asks Optuna what to try, and tells it what came of it; as many at once as the configuration says."""

    def __init__(
        self, optuna: Any, config: Config, done: list[Trial], attempt: Callable[[int, Settings], Trial]
    ) -> None:
        self._config, self._attempt, self.trials = config, attempt, list(done)
        # The same seed would propose after a restart what it proposed before: it moves with what is known.
        sampler = optuna.samplers.TPESampler(
            seed=config.train.seed + len(done), constant_liar=config.search.parallel > 1, n_startup_trials=8
        )
        self._optuna, self._study = optuna, optuna.create_study(direction="maximize", sampler=sampler)
        self._started = time.monotonic()
        # Those that an ended run was at work on come first.
        self._numbers = sorted(set(range(config.search.trials)) - {trial.number for trial in done})
        for trial in done:
            self._remember(trial)

    def run(self) -> list[Trial]:
        """Until the budget is used up; all trials of the study, those of earlier runs among them."""
        running: dict[Future[Trial], optuna.Trial | None] = {}
        with ThreadPoolExecutor(self._config.search.parallel) as pool:
            while True:
                while self._numbers and len(running) < self._config.search.parallel and self._has_time():
                    number = self._numbers.pop(0)
                    asked, settings = self._next(number)
                    running[pool.submit(self._attempt, number, settings)] = asked
                if not running:
                    return self.trials
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    self._tell(running.pop(future), future.result())

    def _has_time(self) -> bool:
        return time.monotonic() - self._started < self._config.search.minutes * 60

    def _next(self, number: int) -> tuple[optuna.Trial | None, Settings]:
        if number == 0:  # what is in use is the measure of all that is tried
            return None, configured(self._config)
        asked = self._study.ask()
        return asked, self._suggest(asked)

    def _suggest(self, trial: optuna.Trial) -> Settings:
        space, settings = self._config.search, Settings()
        settings["train.rank"] = trial.suggest_int("train.rank", *space.rank, log=True)
        settings["train.reg_param"] = trial.suggest_float("train.reg_param", *space.reg_param, log=True)
        if self._config.train.mode == "implicit":
            settings["train.alpha"] = trial.suggest_float("train.alpha", *space.alpha, log=True)
            decays = trial.suggest_categorical("decays", [True, False])
            settings["history.half_life_days"] = (
                trial.suggest_float("history.half_life_days", *space.half_life_days, log=True) if decays else math.inf
            )
            largest = max(abs(weight) for weight in self._config.events.weights.values())
            for name in _varied(self._config):
                key, sign = f"events.weights.{name}", math.copysign(1.0, self._config.events.weights[name])
                settings[key] = sign * largest * trial.suggest_float(key, *space.weights, log=True)
        return settings

    def _tell(self, asked: optuna.Trial | None, trial: Trial) -> None:
        self.trials.append(trial)
        if asked is None:
            self._remember(trial)
        elif trial.score is None:
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, trial.score)
        self._report(trial)

    def _remember(self, trial: Trial) -> None:
        """Let Optuna know of a trial that it has not asked for in this process."""
        if trial.score is None:
            return
        fixed = self._optuna.trial.FixedTrial(self._proposal(trial.settings))
        try:
            with warnings.catch_warnings():  # of what the next call refuses
                warnings.filterwarnings("ignore", "The value .* is out of the range")
                self._suggest(fixed)
            known = self._optuna.trial.create_trial(
                params=fixed.params, distributions=fixed.distributions, value=trial.score
            )
        except ValueError as error:  # outside of the space: a measure, but nothing to learn from
            log.debug("trial %d is not told to the sampler: %s", trial.number, error)
            return
        self._study.add_trial(known)

    def _proposal(self, settings: Settings) -> dict[str, Any]:
        """Optuna's parameters of some settings."""
        proposal: dict[str, Any] = dict(settings)
        proposal["train.rank"] = int(settings["train.rank"])
        if "history.half_life_days" in settings:
            proposal["decays"] = math.isfinite(settings["history.half_life_days"])
        largest = max(abs(weight) for weight in self._config.events.weights.values())
        for name in _varied(self._config):
            if (key := f"events.weights.{name}") in settings:
                proposal[key] = abs(settings[key]) / largest
        return proposal

    def _report(self, trial: Trial) -> None:
        scored = [t for t in self.trials if t.score is not None]
        best = max(scored, key=lambda t: (t.score, -t.number), default=None)
        said = f"NDCG {trial.score:.4f}" if trial.score is not None else f"failed: {trial.failure}"
        so_far = f"best {best.score:.4f} of trial {best.number}" if best else "no score yet"
        each = sum(t.seconds for t in self.trials) / len(self.trials) / self._config.search.parallel
        left = max(0.0, self._config.search.trials - len(self.trials)) * each
        left = min(left, max(0.0, self._config.search.minutes * 60 - (time.monotonic() - self._started)))
        settings = ", ".join(f"{key}={value:.4g}" for key, value in trial.settings.items())
        log.info(
            "trial %d (%d of %d): %s in %.1f s (%s), about %.0f min left; %s",
            trial.number, len(self.trials), self._config.search.trials, said, trial.seconds, so_far, left / 60,
            settings,
        )  # fmt: skip


def _varied(config: Config) -> list[str]:
    """Event types whose weights are searched: all but the heaviest, since alpha scales them together."""
    weights = config.events.weights
    heaviest = max(weights, key=lambda name: abs(weights[name]))
    return [name for name, weight in weights.items() if weight and name != heaviest]


def _open_study(tables: Tables, config: Config, cut_version: int, until_us: int) -> tuple[Study, list[Trial]]:
    """The newest study of this configuration if it has budget left and its events are still there, or a new one."""
    mark = _fingerprint(config)
    rows = tables.read(TRIALS).where(F.col("study").startswith(mark)).orderBy("at").collect()
    if rows:
        newest = rows[-1]
        study = Study(newest["study"], newest["cut_version"], newest["split_us"], newest["until_us"])
        done = [
            Trial(row["number"], row["settings"], row["score"], row["seconds"], row["failure"])
            for row in rows
            if row["study"] == study.name
        ]
        # What its trials have seen must not reach into what the judge holds out today.
        if len(done) < config.search.trials and study.until_us <= until_us and _readable(tables, study.cut_version):
            log.info("going on with study %s: %d of %d trials are done", study.name, len(done), config.search.trials)
            return study, done
    before, _ = sides(tables.read(EVENTS, version=cut_version), until_us)
    split_us = split_time(before, config.judge.holdout)
    if split_us is None:
        raise FoldinError("nothing to search on: there are no events to hold out")
    return Study(f"{mark}-{secrets.token_hex(3)}", cut_version, split_us, until_us), []


def _readable(tables: Tables, version: int) -> bool:
    """Delta refuses versions whose files VACUUM may have deleted, though the log still has them."""
    try:
        tables.read(EVENTS, version=version).schema  # noqa: B018 - it is the look that counts
    except PySparkException as error:
        log.info("the events of the last study cannot be read any more: %s", reason_of(error))
        return False
    return True


def _fingerprint(config: Config) -> str:
    """Of all that a trial depends on beside its settings: trials of one mark can be compared on the same events."""
    space = config.search.model_dump(exclude={"trials", "minutes", "parallel"})
    rest = [
        space,
        config.judge.model_dump(include={"k", "holdout"}),
        config.train.model_dump(exclude={"adoption_minutes"}),
    ]
    rest += [config.history.model_dump(), config.events.model_dump()]
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:10]


def _append(tables: Tables, study: Study, metric: str, trial: Trial) -> None:
    row = {
        "study": study.name,
        "number": trial.number,
        "cut_version": study.cut_version,
        "split_us": study.split_us,
        "until_us": study.until_us,
        "settings": {key: float(value) for key, value in trial.settings.items()},
        "metric": metric,
        "score": trial.score,
        "seconds": trial.seconds,
        "failure": trial.failure,
    }
    frame = tables.spark.createDataFrame([dict.fromkeys(TRIALS.schema.names) | row], TRIALS.schema)
    tables.append(frame.withColumn("at", F.current_timestamp()), TRIALS)


def _optuna() -> Any:
    try:
        with warnings.catch_warnings():  # in a notebook tqdm asks for widgets to draw bars that nobody wants
            warnings.filterwarnings("ignore", "IProgress not found")
            import optuna
    except ImportError as error:
        raise PrerequisiteError("train --search needs Optuna: pip install 'optuna>=4'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
