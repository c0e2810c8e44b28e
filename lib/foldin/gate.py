"""The gate between a trained model and the one that serves: what may not come in by itself, and why."""

from __future__ import annotations

import json

from foldin.adoption import bring_into_force
from foldin.config import Config
from foldin.errors import MissingModelError, RejectedModelError
from foldin.judging import Judgement
from foldin.registry import Registry
from foldin.tables import Tables

__all__ = ["admit", "check", "verdict"]


def verdict(tables: Tables, config: Config, model_version: str) -> str:
    """Why a version was judged too bad to serve; "" if it was not. `judge.margin` is today's.

    Raises:
        MissingModelError: there is no such version, or it is retired.
    """
    text = Registry(tables).row(model_version)["judgement"]
    if not text:
        return ""
    return Judgement.from_dict(json.loads(text)).verdict(config.judge.margin, config.judge.least_users)


def check(tables: Tables, config: Config, model_version: str) -> bool:
    """Whether a version is in force already; False if it may come into force. Nothing is written.

    Raises:
        RejectedModelError: it must not: it is judged worse, older than what serves, or retired.
        MissingModelError: there is no such version.
    """
    registry = Registry(tables)
    state = registry.read()
    if state.serves(model_version):
        return True
    try:
        worse = verdict(tables, config, model_version)
    except MissingModelError as error:
        if registry.is_retired(model_version):
            raise RejectedModelError(str(error)) from error
        raise
    if (other := registry.newer_than(model_version, state)) is not None:
        raise RejectedModelError(f"model {model_version} does not come into force: it is older than {other}")
    if worse:
        raise RejectedModelError(f"model {model_version} stays a candidate: {worse}")
    return False


def admit(tables: Tables, config: Config, model_version: str, *, force: bool = False, reason: str = "trained") -> bool:
    """Bring a version into force, unless it is judged worse or older than what serves; True once it is.

    It waits `train.adoption_minutes` for a running stream to adopt it; the stream goes on beyond them.

    Args:
        force: bring it into force although it is judged worse, and write that down.

    Raises:
        RejectedModelError: it stays as it is.
        FoldinError: as `bring_into_force`.
    """
    if Registry(tables).read().serves(model_version):  # forced, or judged by another margin
        return True
    worse = verdict(tables, config, model_version)
    if worse and not force:
        raise RejectedModelError(f"model {model_version} stays a candidate: {worse}")
    why = f"forced, although its {worse}" if worse else reason
    wait = config.train.adoption_minutes * 60
    return bring_into_force(tables, config, model_version, reason=why, wait=wait, newer=True)
