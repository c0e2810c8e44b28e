"""Invariant 1: a user's training history, folded against the model's items, gives MLlib's factors.

On real data, in the precision that the stream ships, against `ALSModel.userFactors` itself. Two
iterations (one at rank 128) suffice: only MLlib's last half-step, from items to users, is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession

from foldin.kernels import Histories, ItemFactors, Objective, fold_in, prepare
from foldin.kernels.reference import normal_equations

RANKS = (8, 32, 128)
TOLERANCE = 1e-6


@dataclass
class Trained:
    """What MLlib made of a set of ratings, with the histories in the order of its users."""

    items: ItemFactors
    histories: Histories
    users: NDArray[np.float32]


def train(spark: SparkSession, ratings: pd.DataFrame, rank: int, objective: Objective) -> Trained:
    """Fit MLlib's ALS on columns user, item (int32), strength (float32)."""
    model = ALS(
        rank=rank,
        maxIter=1 if rank > 32 else 2,
        regParam=objective.reg_param,
        alpha=objective.alpha,
        implicitPrefs=objective.implicit_prefs,
        nonnegative=objective.nonnegative,
        numUserBlocks=2,
        numItemBlocks=2,
        seed=7,
        userCol="user",
        itemCol="item",
        ratingCol="strength",
    ).fit(spark.createDataFrame(ratings))
    items = model.itemFactors.toPandas().sort_values("id")
    users = model.userFactors.toPandas().sort_values("id")
    known = ratings[ratings.user.isin(users.id)].sort_values("user", kind="stable")
    counts = known.groupby("user").size().reindex(users.id).to_numpy()
    return Trained(
        prepare(np.stack(items.features.to_numpy()), objective, model_version="parity"),
        Histories(
            np.concatenate(([0], np.cumsum(counts))),
            np.searchsorted(items.id.to_numpy(), known.item.to_numpy()),
            known.strength.to_numpy(),
        ),
        np.stack(users.features.to_numpy()).astype(np.float32),
    )


pytestmark = [pytest.mark.realdata, pytest.mark.usefixtures("compiled")]


@pytest.fixture(scope="module")
def movielens(data_dir: Path) -> pd.DataFrame:
    table = pd.read_csv(data_dir / "movielens-latest-small" / "ratings.csv.gz")
    return pd.DataFrame(
        {
            "user": table.userId.astype("int32"),
            "item": table.movieId.astype("int32"),
            "strength": table.rating.astype("float32"),
        }
    )


@pytest.fixture(scope="module")
def online_retail(data_dir: Path) -> pd.DataFrame:
    """Pieces bought, by customer and article."""
    files = sorted((data_dir / "online-retail" / "by-day").glob("*.csv.gz"))
    columns = ["StockCode", "Quantity", "CustomerID"]
    lines = pd.concat([pd.read_csv(f, usecols=columns, dtype={"StockCode": str}) for f in files])
    bought = lines[lines.CustomerID.notna() & (lines.Quantity > 0)]
    pieces = bought.groupby(["CustomerID", "StockCode"], as_index=False).Quantity.sum()
    return pd.DataFrame(
        {
            "user": pieces.CustomerID.astype("int32"),
            "item": pd.factorize(pieces.StockCode, sort=True)[0].astype("int32"),
            "strength": pieces.Quantity.astype("float32"),
        }
    )


@pytest.fixture(scope="module", autouse=True)
def _keep_spark_quiet(spark: SparkSession) -> Iterator[None]:
    spark.conf.set("spark.sql.execution.arrow.pyspark.enabled", "true")
    yield
    spark.conf.unset("spark.sql.execution.arrow.pyspark.enabled")


def relative_errors(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    """|found - wanted| / |wanted| by user; where MLlib has zeros, |found|."""
    difference = np.linalg.norm(found.astype(np.float64) - wanted, axis=1)
    norm = np.linalg.norm(wanted.astype(np.float64), axis=1)
    return difference / np.where(norm > 0, norm, 1.0)


def assert_same_factors(trained: Trained) -> None:
    errors = relative_errors(fold_in(trained.items, trained.histories), trained.users)
    assert len(errors) > 600
    assert errors.max() <= TOLERANCE


@pytest.mark.parametrize("rank", RANKS)
def test_explicit_ratings_of_movielens(spark: SparkSession, movielens: pd.DataFrame, rank: int) -> None:
    assert_same_factors(train(spark, movielens, rank, Objective(0.1, implicit_prefs=False)))


@pytest.mark.parametrize("rank", RANKS)
def test_implicit_strengths_of_movielens(spark: SparkSession, movielens: pd.DataFrame, rank: int) -> None:
    assert_same_factors(train(spark, movielens, rank, Objective(0.1, alpha=10.0)))


@pytest.mark.parametrize("rank", RANKS)
def test_negative_and_zero_strengths_of_movielens(spark: SparkSession, movielens: pd.DataFrame, rank: int) -> None:
    signed = movielens.assign(strength=movielens.strength - np.float32(3.0))
    assert (signed.strength < 0).any()
    assert (signed.strength == 0).any()
    assert_same_factors(train(spark, signed, rank, Objective(0.05, alpha=4.0)))


@pytest.mark.parametrize("rank", RANKS)
def test_pieces_bought_in_online_retail(spark: SparkSession, online_retail: pd.DataFrame, rank: int) -> None:
    """Strengths from 1 to 80,995, which makes the worst conditioned systems of all."""
    assert_same_factors(train(spark, online_retail, rank, Objective(0.1, alpha=1.0)))


@pytest.mark.parametrize("implicit_prefs", [False, True])
@pytest.mark.parametrize("rank", RANKS)
def test_nonnegative_factors_are_as_good_as_mllibs(
    spark: SparkSession, movielens: pd.DataFrame, rank: int, implicit_prefs: bool
) -> None:
    objective = Objective(0.1, alpha=2.0, implicit_prefs=implicit_prefs, nonnegative=True)
    trained = train(spark, movielens, rank, objective)
    found = fold_in(trained.items, trained.histories)
    assert (found >= 0).all()
    assert len(found) > 600
    for user, (ours, mllibs) in enumerate(zip(found, trained.users, strict=True)):
        a, b = normal_equations(trained.items, *rows_of(trained.histories, user))
        ours_at, mllibs_at = (0.5 * x @ a @ x - b @ x for x in (ours, mllibs.astype(np.float64)))
        assert ours_at <= mllibs_at + TOLERANCE * abs(mllibs_at), f"user {user}"


def rows_of(histories: Histories, user: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    rows = slice(histories.indptr[user], histories.indptr[user + 1])
    return histories.indices[rows], histories.strengths[rows]
