"""The numerical core: fold-in, top-N and explanation on numpy arrays. No Spark, no pandas."""

from foldin.kernels.least_squares import fold_in
from foldin.kernels.prepare import ItemFactors, prepare
from foldin.kernels.reference import fold_in_reference
from foldin.kernels.ranking import TopN, top_n, top_n_reference
from foldin.kernels.types import Histories, Objective

__all__ = [
    "Histories",
    "ItemFactors",
    "Objective",
    "TopN",
    "fold_in",
    "fold_in_reference",
    "prepare",
    "top_n",
    "top_n_reference",
]
