"""A process that keeps one Spark session and runs foldin's jobs and commands in it, one after the other.

    warm.py serve SOCKET
    warm.py SOCKET jobs/NAME.py OPTIONS...
    warm.py SOCKET -m foldin COMMAND OPTIONS...

The second and third ask it, print what the job printed and end with its exit code: what runs is the job as it is, but
for the ten seconds that each would take to start a JVM.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import tempfile


def serve(address: str) -> None:
    """Until somebody sends nothing."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rw", encoding="utf-8") as stream:
                words = json.loads(stream.readline())
                if not words:
                    return
                stream.write(json.dumps(perform(words)))


def perform(words: list[str]) -> tuple[int, str]:
    """The exit code, and what was written to both outputs, of the JVM too."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(output.fileno(), number)
        try:
            code = run(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)
        output.seek(0)
        return code, output.read()


def run(words: list[str]) -> int:
    """As `python WORDS...` would."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def ask(address: str, words: list[str]) -> tuple[int, str]:
    """What the process at `address` says of `words`."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        with client.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(words) + "\n")
            stream.flush()
            code, output = json.loads(stream.read() or '[0, ""]')
            return code, output


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        answer, said = ask(sys.argv[1], sys.argv[2:])
        sys.stdout.write(said)
        sys.stdout.flush()
        sys.exit(answer)
