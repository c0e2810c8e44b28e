"""`python -m foldin`: the commands that are not jobs."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from foldin.cli import setup_logging
from foldin.errors import FoldinError, reason_of
from foldin.redaction import hide

if TYPE_CHECKING:  # `--help` needs no Spark
    from foldin.config import Config
    from foldin.tables import Tables

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    parser = argparse.ArgumentParser(prog="foldin", description="A recommender as fresh as its last event.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="the whole loop on a generated log, or on one of yours")
    demo.add_argument("--data", metavar="FOLDER", help="a folder of files instead of the generated log")
    demo.add_argument("--mapping", metavar="NAME|FILE", help="how to read them; else the shipped one that fits")
    demo.add_argument("--size", default="small", choices=("small", "medium", "large"), help="of the generated log")
    demo.add_argument("--root", default="data/demo", metavar="FOLDER", help="where everything goes (emptied first)")
    demo.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="sets")
    status = commands.add_parser("status", help="tables, model and streams on one screen; it writes nothing")
    _add_settings(status)
    status.add_argument("--json", action="store_true", help="for machines")
    models = commands.add_parser(
        "models", help="versions of the model: status, age, quality, who replaced whom and why"
    )
    _add_settings(models)
    models.add_argument("--json", action="store_true", help="for machines")
    activate = commands.add_parser("activate", help="bring a version into force: a candidate, or back to an older one")
    _add_settings(activate)
    activate.add_argument("version")
    activate.add_argument("--reason", default="by hand", help="for the log of models")
    activate.add_argument("--gated", action="store_true", help="not if it is judged worse, or older, than what serves")
    activate.add_argument(
        "--wait",
        type=float,
        metavar="MINUTES",
        help="for the running stream to adopt it (train.adoption_minutes)",
    )
    gate = commands.add_parser("gate", help="may a version come into force by itself? It writes nothing")
    _add_settings(gate)
    gate.add_argument("version")
    size = commands.add_parser("size", help="cores, memory, disks and settings for so many events, users and items")
    size.add_argument("--events-per-second", type=float, required=True, metavar="N", help="in the busiest hour")
    size.add_argument("--users", type=int, required=True, metavar="N")
    size.add_argument("--items", type=int, required=True, metavar="N")
    size.add_argument("--rank", type=int, required=True, metavar="N")
    size.add_argument("--events-per-user", type=float, default=30.0, metavar="N", help="on average (%(default)g)")
    size.add_argument("--lists", action=argparse.BooleanOptionalAction, default=True, help="or factors alone")
    size.add_argument("--cores", type=int, metavar="N", help="of the stream, where they are given")
    form = size.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for machines: seconds and bytes")
    form.add_argument("--conf", choices=("toml", "properties"), help="settings alone: foldin's, or Spark's")
    options = parser.parse_args(argv)
    setup_logging()
    try:
        run = {
            "demo": _demo,
            "status": _status,
            "models": _models,
            "gate": _gate,
            "activate": _activate,
            "size": _size,
        }
        return run[options.command](options)
    except FoldinError as error:
        print(f"foldin: {hide(str(error))}", file=sys.stderr)
        return error.exit_code
    except (PySparkException, Py4JError) as error:
        print(f"foldin: {reason_of(error)}", file=sys.stderr)
        return FoldinError.exit_code


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="TOML file with the settings that differ from the default")
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="sets")
    command.add_argument("--mapping", metavar="NAME|FILE", help="as for the jobs: its [settings] stand below FILE's")
    command.add_argument("--root", metavar="FOLDER", help="short for --set tables.root=FOLDER")


def _demo(options: argparse.Namespace) -> int:
    from foldin.demo import run_demo  # after the parser: `--help` needs no Spark

    run_demo(root=options.root, size=options.size, data=options.data, mapping=options.mapping, sets=options.sets)
    return 0


@contextmanager
def _opened(options: argparse.Namespace, *, create: bool) -> Iterator[tuple[Tables, Config]]:
    """The tables that the options name, with a session that is quiet about its start."""
    from foldin.mapping import load_settings
    from foldin.session import build_session
    from foldin.storage import check_catalog
    from foldin.tables import Tables

    root = [f"tables.root={json.dumps(options.root)}"] if options.root is not None else []
    config, _ = load_settings(options.config, [*options.sets, *root], options.mapping)
    with tempfile.TemporaryDirectory() as folder:  # Ivy and Spark's launcher print a page on stderr
        spark = build_session(config, log_file=Path(folder) / "spark.log")
        check_catalog(spark, config.tables)
        yield Tables.of(spark, config.tables, create=create), config


def _status(options: argparse.Namespace) -> int:
    from foldin.screen import render
    from foldin.status import health

    with _opened(options, create=False) as (tables, config):
        found = health(tables, config)
    print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if options.json else render(found))
    return found.exit_code


def _models(options: argparse.Namespace) -> int:
    from foldin.lineage import lineage, render_lineage
    from foldin.schemas import MODELS

    with _opened(options, create=False) as (tables, _):
        versions = lineage(tables) if tables.exists(MODELS) else []
    if options.json:
        print(json.dumps([asdict(version) for version in versions], indent=2, ensure_ascii=False, default=str))
    else:
        print(render_lineage(versions, dt.datetime.now(dt.UTC)))
    return 0


def _gate(options: argparse.Namespace) -> int:
    from foldin.gate import check

    with _opened(options, create=False) as (tables, config):
        in_force = check(tables, config, options.version)
    print(f"model {options.version} {'is in force' if in_force else 'may come into force'}")
    return 0


def _activate(options: argparse.Namespace) -> int:
    from foldin.adoption import bring_into_force
    from foldin.gate import admit
    from foldin.storage import warn_of_dangers

    if options.wait is not None:
        options.sets.append(f"train.adoption_minutes={options.wait}")
    with _opened(options, create=False) as (tables, config):
        warn_of_dangers(tables)
        if options.gated:
            done = admit(tables, config, options.version, reason=options.reason)
        else:
            wait = config.train.adoption_minutes * 60
            done = bring_into_force(tables, config, options.version, reason=options.reason, wait=wait)
    print(f"model {options.version} {'is in force' if done else 'is still being adopted by the stream'}")
    return 0 if done else 1


def _size(options: argparse.Namespace) -> int:
    from foldin.sizing import Load, size
    from foldin.sizing_report import foldin_toml, render_size, size_to_dict, spark_properties

    load = Load(**{field.name: getattr(options, field.name) for field in fields(Load)})
    found = size(load, cores=options.cores)
    if options.json:
        print(json.dumps(size_to_dict(found), indent=2))
    else:
        print({"toml": foldin_toml, "properties": spark_properties, None: render_size}[options.conf](found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
