"""What fold-in is worth: a log replayed in order of time, everybody asked before anybody learns."""

from foldin.evaluation.job import check_options, evaluate_job
from foldin.evaluation.plan import Plan
from foldin.evaluation.results import Cost, Replayed, Setting, Shown
from foldin.evaluation.run import Evaluation, evaluate

__all__ = ["Cost", "Evaluation", "Plan", "Replayed", "Setting", "Shown", "check_options", "evaluate", "evaluate_job"]
