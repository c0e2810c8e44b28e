"""One group of users as a batch of systems, and their solution by LAPACK.

In the eigenbasis of the Gramian, YᵀY = Q Λ Qᵀ and Ỹ = Y Q, every user's normal equations are

    (D + ỸᵤᵀWỸᵤ) x̃ = Ỹᵤᵀ c,
    D = Λ + n⁺·regParam·I,   W = diag(alpha·|r|),   c = (1 + alpha·r)·[r > 0]

in explicit mode with Q = I, Λ = 0, W = I, c = r. With S = W^½ Ỹᵤ D^-½ both shapes of the system are
"identity plus positive semi-definite":

    dual   (n × n):  (I + S Sᵀ) z = W^-½ c,              x̃ = D^-½ Sᵀ z
    primal (k × k):  (I + Sᵀ S) z = D^-½ Ỹᵤᵀ c,          x̃ = D^-½ z

No eigenvalue is below 1. S itself is never formed: scaling vectors costs less than scaling rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Dual", "Floats", "Group", "Primal", "solve_directly"]

Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]


@dataclass(eq=False)
class Group:
    """A batch of users padded to the same number of rows; a padded row has weight and c of 0."""

    y: Float64s
    """(users, n, rank): Ỹᵤ."""
    d: Float64s
    """(users, rank): the diagonal D, all above 0."""
    root_w: Float64s
    """(users, n): W^½."""
    c_over_root_w: Float64s
    """(users, n): W^-½ c."""

    def only(self, users: NDArray[np.bool_], n: int) -> Group:
        """The group of the chosen users, whose rows after the first n are padding."""
        return Group(
            self.y[users, :n],
            self.d[users],
            self.root_w[users, :n],
            self.c_over_root_w[users, :n],
        )


def weighted_sum(weights: Floats, y: Floats) -> Floats:
    """(users, rank): Ỹᵤᵀ · weights, one matrix-vector product a user."""
    total: Floats = np.matmul(weights[:, None, :], y)[:, 0]
    return total


def dot_rows(y: Floats, x: Floats) -> Floats:
    """(users, n): Ỹᵤ · x, one matrix-vector product a user."""
    dots: Floats = np.matmul(y, x[:, :, None])[:, :, 0]
    return dots


class Dual:
    """(I + S Sᵀ) z = W^-½ c: one unknown a row of the history."""

    slack = 2.0
    """|D^½ δx̃| <= |residual| / slack: |Sᵀ(I + S Sᵀ)⁻¹| = max σ/(1 + σ²) <= 1/2 over all σ."""

    def __init__(self, group: Group, work: Floats) -> None:
        self.group, self.work = group, work
        self.root_w = group.root_w.astype(work.dtype)
        self.inverse_d = (1.0 / group.d).astype(work.dtype)
        self.rhs: Floats = group.c_over_root_w

    def apply(self, p: Floats) -> Floats:
        """(I + S Sᵀ) p, in the precision of the working copy."""
        u = weighted_sum(p * self.root_w, self.work)
        u *= self.inverse_d
        q = dot_rows(self.work, u)
        q *= self.root_w
        q += p
        return q

    def factors(self, z: Floats) -> Floats:
        """x̃ of z, in float64."""
        x = weighted_sum(z * self.group.root_w, self.group.y)
        x /= self.group.d
        return x

    def step(self, dz: Floats) -> Floats:
        """The step of x̃ that a step of z makes, in the precision of the working copy."""
        dx = weighted_sum(dz * self.root_w, self.work)
        dx *= self.inverse_d
        return dx

    def residual(self, z: Floats, x: Floats) -> Floats:
        """W^-½ c - (I + S Sᵀ) z in float64, given the x̃ of z."""
        explained = dot_rows(self.group.y, x)
        explained *= self.group.root_w
        explained += z
        return np.subtract(self.rhs, explained, out=explained)


class Primal:
    """(I + Sᵀ S) z = D^-½ Ỹᵤᵀ c: one unknown a factor."""

    slack = 1.0
    """|D^½ δx̃| = |(I + SᵀS)⁻¹ residual| <= |residual|."""

    def __init__(self, group: Group, work: Floats) -> None:
        self.group, self.work = group, work
        self.root_d = np.sqrt(group.d)
        self.w = (group.root_w * group.root_w).astype(work.dtype)
        self.inverse_root_d = (1.0 / self.root_d).astype(work.dtype)
        self.c = group.root_w * group.c_over_root_w
        # The first pass starts from this; the residuals that correct it start from c.
        self.rhs: Floats = weighted_sum(self.c.astype(work.dtype), work)
        self.rhs *= self.inverse_root_d

    def apply(self, p: Floats) -> Floats:
        """(I + Sᵀ S) p, in the precision of the working copy."""
        t = dot_rows(self.work, p * self.inverse_root_d)
        t *= self.w
        q = weighted_sum(t, self.work)
        q *= self.inverse_root_d
        q += p
        return q

    def factors(self, z: Floats) -> Floats:
        """x̃ of z, in float64."""
        return np.divide(z, self.root_d)

    step = factors

    def residual(self, z: Floats, x: Floats) -> Floats:
        """D^-½ Ỹᵤᵀ c - (I + Sᵀ S) z in float64, given the x̃ of z."""
        unexplained = dot_rows(self.group.y, x)
        unexplained *= self.group.root_w**2
        np.subtract(self.c, unexplained, out=unexplained)
        r = weighted_sum(unexplained, self.group.y)
        r /= self.root_d
        r -= z
        return r


def solve_directly(group: Group, spare: Float64s | None = None) -> Floats:
    """(users, rank): x̃ by LAPACK in float64, from the smaller of the two shapes.

    spare: an array of the shape of group.y to work in.
    """
    n, rank = group.y.shape[1:]
    if n <= rank:
        divided = np.multiply(group.y, (1.0 / group.d)[:, None, :], out=spare)
        m = np.matmul(divided, group.y.transpose(0, 2, 1))
        # One product and one flat pass: scaling rows, then columns, would loop over short rows.
        m *= np.matmul(group.root_w[:, :, None], group.root_w[:, None, :])
        m.reshape(len(m), -1)[:, :: n + 1] += 1.0
        z = np.linalg.solve(m, group.c_over_root_w[:, :, None])[:, :, 0]
        x = weighted_sum(group.root_w * z, group.y)
        x /= group.d
        return x
    scaled = np.multiply(group.y, group.root_w[:, :, None], out=spare)
    a = np.matmul(scaled.transpose(0, 2, 1), scaled)
    a.reshape(len(a), -1)[:, :: rank + 1] += group.d
    b = weighted_sum(group.c_over_root_w, scaled)
    x = np.linalg.solve(a, b[:, :, None])[:, :, 0]
    return x
