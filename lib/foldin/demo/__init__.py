"""The whole loop in under three minutes, on a generated log or a real one."""

from foldin.demo.story import run_demo
from foldin.demo.synthetic import SIZES, SyntheticLog

__all__ = ["SIZES", "SyntheticLog", "run_demo"]
