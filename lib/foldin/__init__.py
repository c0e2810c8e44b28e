"""foldin: a recommender as fresh as its last event, on Spark and Delta."""

__version__ = "0.1.0"

__all__ = ["__version__"]
