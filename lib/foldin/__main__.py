"""`python -m foldin`: the commands that are not jobs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from foldin.cli import setup_logging
from foldin.errors import FoldinError, reason_of

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
    status.add_argument("--config", metavar="FILE", help="TOML file with the settings that differ from the default")
    status.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="sets")
    status.add_argument("--root", metavar="FOLDER", help="short for --set tables.root=FOLDER")
    status.add_argument("--json", action="store_true", help="for machines")
    options = parser.parse_args(argv)
    setup_logging()
    try:
        return _status(options) if options.command == "status" else _demo(options)
    except FoldinError as error:
        print(f"foldin: {error}", file=sys.stderr)
        return error.exit_code
    except (PySparkException, Py4JError) as error:
        print(f"foldin: {reason_of(error)}", file=sys.stderr)
        return FoldinError.exit_code


def _demo(options: argparse.Namespace) -> int:
    from foldin.demo import run_demo  # after the parser: `--help` needs no Spark

    run_demo(root=options.root, size=options.size, data=options.data, mapping=options.mapping, sets=options.sets)
    return 0


def _status(options: argparse.Namespace) -> int:
    from foldin.config import load_config
    from foldin.screen import render
    from foldin.session import build_session
    from foldin.status import health
    from foldin.tables import Tables

    root = [f"tables.root={json.dumps(options.root)}"] if options.root is not None else []
    config = load_config(options.config, [*options.sets, *root])
    with tempfile.TemporaryDirectory() as folder:  # Ivy and Spark's launcher print a page on stderr
        spark = build_session(config, log_file=Path(folder) / "spark.log")
        found = health(Tables.of(spark, config.tables, create=False), config)
    print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if options.json else render(found))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
