"""Conjugate gradients in the working precision with refinement in float64.

The systems of `Dual` and `Primal` have eigenvalues from 1 to little more (median 1.4 to 21, worst
5,000, over models of MovieLens and Online Retail with alpha 1 and 40), so 5 to 15 steps of two
matrix-vector products replace the factorisation, for which LAPACK runs at a tenth of GEMM's speed
at these sizes. How far a solution is from the exact one is bounded by its residual, not hoped for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from foldin.kernels.systems import Dual, Floats, Group, Primal

__all__ = ["conjugate_gradients", "solve_iteratively"]

FIRST_PASS = 1e-5
"""Fall of the residual in the first pass: what float32 still gives without drifting away."""
LATER_PASS = 1e-4
"""Fall of the residual in a later pass, before it is taken anew in float64."""
MAX_PASSES = 3
MAX_STEPS = 40
"""Steps a pass: systems that need more are left to LAPACK."""


def conjugate_gradients(
    apply: Callable[[Floats], Floats], rhs: Floats, goal: Floats, max_steps: int = MAX_STEPS
) -> tuple[Floats, Floats]:
    """Solutions of a batch of systems to residual norms of at most `goal`, and the norms reached.

    rhs: (users, size), goal and the norms: (users,). Hestenes and Stiefel 1952, started at 0, in
    the precision of rhs. A system whose numbers overflow ends with a norm of NaN.
    """
    tiny = np.finfo(rhs.dtype).tiny  # 0 / tiny is 0: a solved system stays where it is
    x = np.zeros_like(rhs)
    r = rhs.copy()
    p = rhs.copy()
    step = np.empty_like(rhs)
    rr = np.vecdot(r, r)
    enough = goal * goal
    for _ in range(max_steps):
        if (rr <= enough).all():
            break
        q = apply(p)
        length = (rr / np.maximum(np.vecdot(p, q), tiny))[:, None]
        np.multiply(p, length, out=step)
        x += step
        q *= length
        r -= q
        before, rr = rr, np.vecdot(r, r)
        p *= (rr / np.maximum(before, tiny))[:, None]
        p += r
    return x, np.sqrt(rr)


def solve_iteratively(
    group: Group, work: Floats, tolerance: float, *, refine: bool = True
) -> tuple[Floats, NDArray[np.bool_]]:
    """x̃, (users, rank), and for which users |δx̃| <= tolerance · |x̃| holds, (users,).

    work: a copy of group.y in the precision of the steps. After each pass the residual is taken in
    float64 (mixed-precision refinement: Wilkinson 1963; Carson and Higham 2018). It bounds the
    error: |δx̃| <= min(D)^-½ |D^½ δx̃| <= min(D)^-½ |residual| / slack. Without `refine` there is
    one pass in the working precision, whose word for the residual is taken.
    """
    n, rank = work.shape[1:]
    system = Dual(group, work) if n <= rank else Primal(group, work)
    smallest = system.slack * np.sqrt(group.d.min(axis=1))
    residual = system.rhs
    norms = np.sqrt(np.vecdot(residual, residual))
    aim = norms * (FIRST_PASS if refine else tolerance)
    z: Floats = np.zeros(residual.shape)
    x: Floats = np.zeros_like(group.d)
    solved = np.zeros(len(norms), dtype=np.bool_)
    for sweep in range(MAX_PASSES):
        dz, reached = conjugate_gradients(system.apply, residual.astype(work.dtype), aim.astype(work.dtype))
        stuck = ~(reached <= 1.001 * aim)  # so that NaN is stuck too; aim was rounded
        z += dz
        if sweep == 0:
            x = system.factors(z)
        else:
            x += system.step(dz)
        goal = tolerance * smallest * np.sqrt(np.vecdot(x, x))
        if not refine:
            return x, ~stuck
        if sweep > 0:  # the steps' own residual is good for the few digits since the last true one
            solved = reached <= goal
            if (solved | stuck).all():
                break
        residual = system.residual(z, x)
        norms = np.sqrt(np.vecdot(residual, residual))
        solved = norms <= goal
        if (solved | stuck).all():
            break
        aim = np.maximum(goal, LATER_PASS * norms)
    return x, solved
