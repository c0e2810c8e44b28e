"""The night as a script, for cron and systemd: the same steps over the same jobs."""

from __future__ import annotations

import fcntl
import shlex
from collections.abc import Callable

import pytest
from nights import BAD, ROOT, Installation, Night, run

pytestmark = pytest.mark.airflow

SCRIPT = ROOT / "conf" / "orchestration" / "cron" / "nightly"
TOLD = "told: "

Copy = Callable[[Installation], Installation]


def night(installation: Installation, *words: str, sets: tuple[str, ...] = ()) -> Night:
    jobs, commands = installation.prefixes()
    done = run(
        [str(SCRIPT), *words],
        installation.folder,
        FOLDIN_HOME=str(ROOT),
        FOLDIN_JOBS=jobs,
        FOLDIN_COMMANDS=commands,
        FOLDIN_OPTIONS=shlex.join(installation.settings(*sets)),
        FOLDIN_LOCK=str(installation.folder / "lock"),
        FOLDIN_RETRIES="0",
        FOLDIN_ALERT=f'echo "{TOLD}$1, $(wc -l) line"',
    )
    lines = done.stdout.splitlines()
    return Night(done.returncode, done.stdout, told=tuple(line for line in lines if line.startswith(TOLD)))


def test_a_night_brings_a_model_into_force_and_a_second_one_of_the_same_date_changes_nothing(
    ingested: Installation, copy_of: Copy
) -> None:
    installation = copy_of(ingested)
    done = night(installation)
    assert done.code == 0, done.output
    before = installation.look()
    assert before["active"].startswith("night-20")
    assert before["models"][0][2] == 200
    again = night(installation)
    assert again.code == 0, again.output
    assert "is there already" in again.output
    after = installation.look()
    assert after | {"events_version": 0} == before | {"events_version": 0}
    assert (done.told, again.told) == ((), ())


def test_a_night_whose_model_is_judged_worse_ends_with_10_and_says_so(ingested: Installation, copy_of: Copy) -> None:
    installation = copy_of(ingested)
    installation.ask("jobs/train.py")  # what serves; without it any model is better than none
    serving = installation.look()["active"]
    assert serving is not None
    done = night(installation, sets=BAD)
    assert done.code == 10, done.output
    assert len(done.told) == 1
    assert done.told[0].endswith("the model is judged worse, or is older, than the one that serves, 1 line")
    assert ": exit code 10, " in done.told[0]
    assert "foldin-nightly: upkeep" in done.output
    assert installation.look()["active"] == serving


def test_a_date_before_all_events_ends_with_1_and_the_reason(ingested: Installation, copy_of: Copy) -> None:
    done = night(copy_of(ingested), "2001-02-03")
    assert done.code == 1
    assert "no event was ingested before 2001-02-04T00:00:00+00:00" in done.output
    assert done.told == (f"{TOLD}train of 2001-02-03: exit code 1, failed, 1 line",)


def test_a_night_beside_another_one_is_refused_with_8(ingested: Installation, copy_of: Copy) -> None:
    installation = copy_of(ingested)
    with (installation.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = night(installation)
    assert done.code == 8
    assert "another night is under way" in done.output
