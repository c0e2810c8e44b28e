"""`python -m foldin`: the commands that are not jobs."""

from __future__ import annotations

import argparse
import sys

from foldin.cli import setup_logging
from foldin.errors import FoldinError

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
    options = parser.parse_args(argv)
    setup_logging()
    from foldin.demo import run_demo  # after the parser: `--help` needs no Spark

    try:
        run_demo(root=options.root, size=options.size, data=options.data, mapping=options.mapping, sets=options.sets)
    except FoldinError as error:
        print(f"foldin: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
