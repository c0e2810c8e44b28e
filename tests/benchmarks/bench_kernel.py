"""Users folded in per second, by foldin and by its peers, in one run on one thread.

    python tests/benchmarks/bench_kernel.py [--users 10000] [--items 50000] [--ranks 32 64 128 256]

Histories are lognormal (median 15, mean 24, at most 1,000 rows) over items of power-law popularity,
with tastes in groups; item factors are what three iterations of `implicit` make of them. All
contenders solve the same systems: `implicit` counts regularisation without n⁺, which costs the same.
They take turns, round by round; the table quotes medians over the rounds, and ratios are medians of
the ratios within a round. Seconds are CPU seconds of the process, which has one thread: on an idle
machine they are those on the clock, on a busy one they leave out the waiting for a core. Errors are the worst
|δx|/|x| of a user against the float64 reference, after rounding to float32.
"""

# ruff: noqa: E402 - the number of threads must be said before anything loads a BLAS

from __future__ import annotations

import os

# One thread for everybody; must be said before numpy and scipy load their BLAS.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import implicit
import numpy as np
import scipy.sparse
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "lib"))

from foldin.kernels import (
    Histories,
    ItemFactors,
    Objective,
    fold_in,
    fold_in_reference,
    prepare,
)

REG_PARAM = 0.1
REFERENCE_USERS = 500
GROUPS = 40


def draw_histories(users: int, items: int, seed: int = 0) -> Histories:
    """Lognormal lengths; 70% of a user's rows are from the own group's items."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.round(rng.lognormal(np.log(15), 0.97, users)), 1, 1000).astype(np.int64)
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    nnz = int(indptr[-1])
    group = np.repeat(rng.integers(0, GROUPS, users), lengths)
    popular = (items * rng.random(nnz) ** 3).astype(np.int64)
    own = rng.random(nnz) < 0.7
    indices = np.where(own, popular // GROUPS * GROUPS + group, popular)
    strengths = np.minimum(np.ceil(rng.lognormal(0.5, 0.9, nnz)), 100)
    return Histories(indptr, np.minimum(indices, items - 1), strengths)


def confidences(histories: Histories, items: int, alpha: float) -> scipy.sparse.csr_matrix:
    """What `implicit` calls confidence: 1 + alpha·r."""
    return scipy.sparse.csr_matrix(
        (1 + alpha * histories.strengths, histories.indices, histories.indptr),
        shape=(histories.n_users, items),
    )


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure_peaks() -> dict[str, float]:
    """GFLOP/s of this thread: GEMM, and LAPACK's factorisations (the faster of potrf and getrf)."""
    rng = np.random.default_rng(0)
    peaks = {}
    for name, dtype in (("float32", np.float32), ("float64", np.float64)):
        a = rng.normal(size=(1536, 1536)).astype(dtype)
        spd = a @ a.T + 1536 * np.eye(1536, dtype=dtype)
        gemm = min(seconds(lambda a=a: a @ a) for _ in range(3))
        potrf = min(seconds(lambda m=spd: np.linalg.cholesky(m)) for _ in range(3))
        peaks[f"gemm {name}"] = 2 * 1536**3 / gemm / 1e9
        getrf = min(seconds(lambda m=spd: np.linalg.solve(m, m[0])) for _ in range(3))
        peaks[f"lapack {name}"] = max(1536**3 / 3 / potrf, 2 * 1536**3 / 3 / getrf) / 1e9
    return peaks


def direct_flops(histories: Histories, rank: int) -> float:
    """Flops a user if the smaller of the two systems were formed by GEMM and factored once.

    The least a direct method needs: n·k·min(n, k) multiply-adds and min(n, k)³/3 flops. The share of
    the peak counts these useful flops, whatever the method really does.
    """
    n = np.diff(histories.indptr).astype(np.float64)
    small = np.minimum(n, rank)
    return float((2 * n * rank * small + small**3 / 3 + 4 * n * rank).mean())


def worst_error(found: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    """The largest |δx|/|x| of a user."""
    difference = np.linalg.norm(found[: len(wanted)] - wanted, axis=1)
    return float((difference / np.linalg.norm(wanted, axis=1)).max())


def first_users(histories: Histories, users: int) -> Histories:
    """The histories of the first users."""
    end = int(histories.indptr[users])
    return Histories(histories.indptr[: users + 1], histories.indices[:end], histories.strengths[:end])


def bench_rank(
    histories: Histories, n_items: int, rank: int, alpha: float, rounds: int, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """One row of the table a contender."""
    users = histories.n_users
    peer_input = confidences(histories, n_items, alpha)
    peer = AlternatingLeastSquares(
        factors=rank, regularization=1.0, alpha=1.0, iterations=3, num_threads=1, random_state=0
    )
    peer.fit(peer_input, show_progress=False)
    peer.regularization = REG_PARAM
    everyone = np.arange(users)
    items: ItemFactors = prepare(peer.item_factors, Objective(REG_PARAM, alpha=alpha), model_version="bench")
    _ = items.rotated, peer.YtY  # once a model, for both
    few = first_users(histories, min(users, REFERENCE_USERS))
    contenders: dict[str, tuple[int, Callable[[], object]]] = {
        "reference": (few.n_users, lambda: fold_in_reference(items, few)),
        "foldin mixed": (users, lambda: fold_in(items, histories, precision="mixed")),
        "foldin float64": (users, lambda: fold_in(items, histories, precision="float64")),
        "foldin float32": (users, lambda: fold_in(items, histories, precision="float32")),
        "implicit.recalculate_user": (users, lambda: peer.recalculate_user(everyone, peer_input)),
        "implicit.partial_fit_users": (users, lambda: peer.partial_fit_users(everyone, peer_input)),
    }
    # The reference over all users, once, to measure errors against.
    wanted = fold_in_reference(items, histories)
    errors = {
        f"foldin {p}": worst_error(fold_in(items, histories, precision=p), wanted)
        for p in ("mixed", "float64", "float32")
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, (_, call) in contenders.items():
            if name != "reference" or turn < 2:
                times[name].append(seconds(call))
    rows = []
    base = times["implicit.recalculate_user"]
    flops = direct_flops(histories, rank)
    for name, (folded, _) in contenders.items():
        rate = folded / statistics.median(times[name])
        ratios = [(b / users) / (t / folded) for b, t in zip(base, times[name], strict=False)]
        rows.append(
            {
                "rank": rank,
                "alpha": alpha,
                "contender": name,
                "users_per_second": rate,
                "microseconds_a_user": 1e6 / rate,
                "times_implicit": statistics.median(ratios),
                "worst_error": errors.get(name, 0.0 if name == "reference" else None),
                "useful_gflops": flops * rate / 1e9,
                "share_of_gemm_peak": flops * rate / 1e9 / peaks["gemm float32"],
                "share_of_lapack_peak": flops * rate / 1e9 / peaks["lapack float32"],
                "seconds": times[name],
            }
        )
    return rows


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    error = "" if row["worst_error"] is None else f"{row['worst_error']:.1e}"
    print(
        f"{row['rank']:>4}  {row['alpha']:>5g}  {row['contender']:<27}"
        f"{row['users_per_second']:>11,.0f}{row['microseconds_a_user']:>9.1f}"
        f"{row['times_implicit']:>9.2f}{error:>10}"
        f"{row['share_of_gemm_peak']:>8.1%}{row['share_of_lapack_peak']:>8.1%}",
        flush=True,
    )


def main() -> int:
    """Print the table and write it to build/bench/kernel.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench" / "kernel.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="implicit")
    histories = draw_histories(args.users, args.items)
    lengths = np.diff(histories.indptr)
    with threadpool_limits(1):
        peaks = measure_peaks()
        print(
            f"{args.users:,} users, {args.items:,} items; rows a user: median "
            f"{np.median(lengths):.0f}, mean {lengths.mean():.1f}, max {lengths.max()}"
        )
        print(", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in peaks.items()))
        print(
            f"{'rank':>4}  {'alpha':>5}  {'contender':<27}{'users/s':>11}{'µs/user':>9}"
            f"{'×impl.':>9}{'error':>10}{'gemm':>8}{'lapack':>8}"
        )
        rows = []
        for alpha in args.alphas:
            for rank in args.ranks:
                for row in bench_rank(histories, args.items, rank, alpha, args.rounds, peaks):
                    rows.append(row)
                    print_row(row)
        libraries = [
            {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
            for pool in threadpool_info()
        ]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps(
            {
                "machine": platform.machine(),
                "python": platform.python_version(),
                "numpy": np.__version__,
                "implicit": implicit.__version__,
                "libraries": libraries,
                "settings": {k: v for k, v in os.environ.items() if k.startswith("OPENBLAS_")},
                "peaks_gflops": peaks,
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
