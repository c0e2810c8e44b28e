"""The night of a foldin installation: ingest health, train, gate, adoption, lists, upkeep.

Put this file into Airflow's folder of DAGs (3.3 or newer). It imports nothing of foldin: each task runs a job as a
process, and its exit code says what becomes of the task. A model is named after the logical date of its run, so a run
that is made again goes on where the first one ended; a run for an old date trains on what had been ingested by then.

Airflow variables, looked up at each task (or AIRFLOW_VAR_NAME in the environment of the workers):

    foldin_home       folder in which the commands run                                  /opt/foldin
    foldin_jobs       what stands before a job's name: python, spark-submit, or         .venv/bin/python jobs/
                      ssh HOST cd /opt/foldin '&&' .venv/bin/python jobs/
                      (a task that takes too long ends with its ssh, and the job only if it runs on a terminal: ssh -tt)
    foldin_commands   what stands before a command's name                               .venv/bin/python -m foldin
    foldin_options    for all of them: --config /etc/foldin/cluster.toml
    foldin_wait       minutes for the running stream to adopt a model                   60
    foldin_alert      who is told beside the log: a JSON list of notifiers with their arguments, in which
                      {{ foldin_alert }} is the line; an e-mail:
                      [{"notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
                        "to": "ops@example.com", "subject": "foldin", "html_content": "{{ foldin_alert }}"}]

Environment, read with this file:

    FOLDIN_SCHEDULE   0 3 * * *, in UTC         FOLDIN_RETRIES         3
    FOLDIN_START      2025-01-01                FOLDIN_RETRY_SECONDS   300, doubled each time up to an hour
    FOLDIN_CATCHUP    false
"""

from __future__ import annotations

import datetime as dt
import importlib
import logging
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, BaseOperator, Param, Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

log = logging.getLogger("foldin.alert")

MEANINGS = {
    1: "failed",
    2: "wrong configuration",
    3: "no active model",
    4: "a checkpoint does not fit the settings, or is damaged",
    5: "the account of rows does not add up",
    6: "a user's equations have no unique solution",
    7: "a number has no defined answer",
    8: "another process is at it",
    9: "an alarm",
    10: "the model is judged worse, or is older, than the one that serves",
    11: "an evaluation's contender knew the future",
}
"""Of foldin's exit codes."""

FINAL = frozenset({2, 3, 4, 5, 6, 7, 10, 11})
"""A person must decide: no retry. All others are tried again: failed, busy, alarms, signals, a lost connection."""


class FoldinOperator(BaseOperator):
    """Runs a command of foldin; its exit code says what becomes of the task.

    Args:
        command: for bash.
        home: the folder in which it runs.
        accepts: exit codes that are as good as 0.
        skips: exit codes after which what comes next is skipped, and somebody is told.
    """

    template_fields = ("command", "home")

    def __init__(
        self,
        *,
        command: str,
        home: str = "{{ var.value.get('foldin_home', '/opt/foldin') }}",
        accepts: Collection[int] = (),
        skips: Collection[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(do_xcom_push=False, **kwargs)
        self.command, self.home = command, home
        self.accepts, self.skips = frozenset(accepts), frozenset(skips)
        self.said = ""

    @cached_property
    def process(self) -> SubprocessHook:
        """The process under way."""
        return SubprocessHook()

    def execute(self, context: Any) -> None:
        """Run it.

        Raises:
            AirflowSkipException: one of `skips`.
            AirflowFailException: one of FINAL.
            AirflowException: any other failure; Airflow tries again.
        """
        done = self.process.run_command(["bash", "-c", self.command], env=dict(os.environ), cwd=self.home)
        code = done.exit_code
        if code == 0 or code in self.accepts:
            return
        reason = f": {done.output}" if done.output.startswith("foldin: ") else ""
        self.said = f"exit code {code}, {MEANINGS.get(code, 'killed or not started')}{reason}"
        if code in self.skips:
            raise AirflowSkipException(self.said)
        raise (AirflowFailException if code in FINAL else AirflowException)(self.said)

    def on_kill(self) -> None:
        """At a timeout: SIGTERM to the job and all its children."""
        self.process.send_sigterm()


def alert(context: Mapping[str, Any]) -> None:
    """One line that says which task of which night, with which exit code, and what that means: to the log and on."""
    task, run = context["task"], context["dag_run"]
    error = context.get("exception")
    what = getattr(task, "said", "") or (f"{type(error).__name__} {error}".strip() if error is not None else "failed")
    line = f"{run.dag_id}.{task.task_id} of {run.logical_date or run.run_after}: {what}"
    log.error("%s", line)
    for wanted in Variable.get("foldin_alert", default=[], deserialize_json=True):
        arguments = dict(wanted)
        module, _, name = arguments.pop("notifier").rpartition(".")
        notifier = getattr(importlib.import_module(module), name)(**arguments)
        notifier({**context, "foldin_alert": line})


def job(name: str, options: str = "") -> str:
    """A job's command line, for a template."""
    return (
        "{{ var.value.get('foldin_jobs', '.venv/bin/python jobs/') }}"
        f"{name}.py {{{{ var.value.get('foldin_options', '') }}}} {options}"
    )


def command(name: str, options: str = "") -> str:
    """The command line of `python -m foldin`, for a template."""
    return (
        "{{ var.value.get('foldin_commands', '.venv/bin/python -m foldin') }} "
        f"{name} {{{{ var.value.get('foldin_options', '') }}}} {options}"
    )


MOMENT = "(dag_run.logical_date or dag_run.run_after)"
MODEL = f"{{{{ {MOMENT}.strftime('%Y%m%dT%H%M%SZ') }}}}"
UNTIL = f"{{{{ {MOMENT}.isoformat() }}}}"

with DAG(
    "foldin_nightly",
    description="train, judge and adopt last night's model",
    doc_md=__doc__,
    schedule=os.environ.get("FOLDIN_SCHEDULE", "0 3 * * *"),
    start_date=dt.datetime.fromisoformat(os.environ.get("FOLDIN_START", "2025-01-01")).replace(tzinfo=dt.UTC),
    catchup=os.environ.get("FOLDIN_CATCHUP", "false").lower() == "true",
    max_active_runs=1,
    params={"force": Param(False, type="boolean", description="bring the model into force whatever the gate says")},
    default_args={
        "owner": "foldin",
        "on_failure_callback": alert,
        "on_skipped_callback": alert,
        "retries": int(os.environ.get("FOLDIN_RETRIES", "3")),
        "retry_delay": dt.timedelta(seconds=float(os.environ.get("FOLDIN_RETRY_SECONDS", "300"))),
        "retry_exponential_backoff": True,
        "max_retry_delay": dt.timedelta(hours=1),
    },
    tags=["foldin"],
) as dag:
    health = FoldinOperator(
        task_id="ingest_health",
        command=command("status", "--json"),
        accepts={3},  # the first night
        execution_timeout=dt.timedelta(minutes=15),
    )
    train = FoldinOperator(
        task_id="train",
        command=job("train", f"--no-activate --as {MODEL} --until {UNTIL}"),
        execution_timeout=dt.timedelta(hours=8),
    )
    gate = FoldinOperator(
        task_id="gate",
        command=f"{{% if params.force %}}echo forced{{% else %}}{command('gate', MODEL)}{{% endif %}}",
        skips={10},  # the model that serves goes on serving
        execution_timeout=dt.timedelta(minutes=15),
    )
    adopt = FoldinOperator(
        task_id="await_adoption",
        command=command(
            "activate",
            f"{MODEL} --reason {{{{ dag_run.dag_id }}}}"
            " --wait {{ var.value.get('foldin_wait', '60') }}{% if not params.force %} --gated{% endif %}",
        ),
        skips={10},  # somebody promoted a newer one in between
        execution_timeout=dt.timedelta(hours=4),
    )
    recommend = FoldinOperator(
        task_id="recommend_all", command=job("recommend"), execution_timeout=dt.timedelta(hours=4)
    )
    maintain = FoldinOperator(
        task_id="maintain",
        # Once for all dates that are made up for is enough: the next night's.
        command=f"{{% if dag_run.run_type == 'backfill' %}}echo later{{% else %}}{job('maintain')}{{% endif %}}",
        trigger_rule="none_failed",  # also in a night that keeps its old model
        execution_timeout=dt.timedelta(hours=4),
    )
    health >> train >> gate >> adopt >> recommend >> maintain
