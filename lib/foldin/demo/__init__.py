"""The whole loop in under three minutes, on a generated log or a real one; its parts are used by the notebooks."""

from foldin.demo.story import run_demo
from foldin.demo.streams import Look, Reader, Streams
from foldin.demo.synthetic import CONVERT, GENRES, NEWCOMER, SIZES, Size, SyntheticLog, genre_of

__all__ = [
    "CONVERT",
    "GENRES",
    "NEWCOMER",
    "SIZES",
    "Look",
    "Reader",
    "Size",
    "Streams",
    "SyntheticLog",
    "genre_of",
    "run_demo",
]
