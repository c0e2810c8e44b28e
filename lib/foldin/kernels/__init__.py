"""The numerical core: fold-in, top-N and explanation on numpy arrays. No Spark, no pandas."""

from foldin.kernels.cache import MEMORY_MAP_BYTES, cached, load, save
from foldin.kernels.explanation import Explanation, explain
from foldin.kernels.least_squares import PRECISIONS, fold_in
from foldin.kernels.prepare import ItemFactors, prepare
from foldin.kernels.ranking import TopN, top_n, top_n_reference
from foldin.kernels.reference import fold_in_reference
from foldin.kernels.types import Histories, Objective

__all__ = [
    "MEMORY_MAP_BYTES",
    "PRECISIONS",
    "Explanation",
    "Histories",
    "ItemFactors",
    "Objective",
    "TopN",
    "cached",
    "explain",
    "fold_in",
    "fold_in_reference",
    "load",
    "prepare",
    "save",
    "top_n",
    "top_n_reference",
]
