"""The second act of the demo: a model is trained, judged and adopted while events stream; a bad one is kept out."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

from foldin.adoption import bring_into_force
from foldin.config import Config
from foldin.errors import FoldinError, RejectedModelError
from foldin.lineage import lineage, render_lineage
from foldin.registry import Registry
from foldin.tables import Tables
from foldin.training import train

__all__ = ["show_lifecycle"]


def show_lifecycle(tables: Tables, config: Config, say: Callable[[str], None]) -> None:
    """Train, adopt, gate and roll back, with the stream running; then the log of all that.

    Raises:
        FoldinError: a step did not end as it must.
    """
    registry = Registry(tables)
    first = registry.active_version()
    trained = train(tables, config)
    newest = lineage(tables)[0]
    _expect(registry, trained.model_version)
    say(f"trained {trained.model_version} on all {trained.events:,} events while the stream ran; it adopted the model")
    if newest.judgement is not None:
        scores = newest.judgement["scores"]
        shown = ", ".join(f"{name} {score['ndcg'] or 0:.4f}" for name, score in scores.items())
        say(f"judged before it served, by what {newest.judgement['users']:,} users took afterwards: NDCG {shown}")

    overdone = {"reg_param": 1000.0, "alpha": 1e-4}
    bad = config.model_copy(update={"train": config.train.model_copy(update=overdone)})
    try:
        train(tables, bad)
    except RejectedModelError as error:
        say(f"a training with regParam 1000 is kept out (exit code {error.exit_code}): {error}")
    else:
        raise FoldinError("a model with regParam 1000 was let in")
    _expect(registry, trained.model_version)

    started = time.monotonic()
    bring_into_force(tables, config, first, reason="rollback, for the demo", wait=60)
    _expect(registry, first)
    say(f"back to {first} in {time.monotonic() - started:.1f} s, what came meanwhile refolded under it first")
    say("the models' log, as `python -m foldin models` prints it:")
    for line in render_lineage(lineage(tables), dt.datetime.now(dt.UTC)).splitlines():
        print(f"    {line}")


def _expect(registry: Registry, version: str) -> None:
    active = registry.active_version()
    if active != version:
        raise FoldinError(f"model {version} should be active by now, but {active} is")
