"""Rows of a block of columns, as they were sent or as they were dropped, scaled and mixed, and what is measured of them.

Distances are never taken out of the products `W G W^T`, which cancel. With squared norms n^2 and squared distances d^2,

    scaled:  d'_ij^2 = s_i s_j d_ij^2 + (s_i - s_j) (s_i n_i^2 - s_j n_j^2)
    mixed (rows of N sum to 1):  d'_ij^2 = -1/2 delta^T d^2 delta, delta = N_i - N_j;  n'_i^2 = N_i n^2 - 1/2 N_i d^2 N_i^T

and what is small against its own terms is measured again on the rows themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from fl_lightning.aggregators._distances import CANCELLED, gram, squared_distances
from fl_lightning.aggregators._threads import by_columns

COLUMNS = 65_536  # that are widened at a time
BLOCK_ENTRIES = 400_000  # a block and its difference from a mean stay in cache
EXACT_ROWS = 64  # up to which the terms of a mixture's distances are summed one by one; beyond it they are bounded


class Block(ABC):
    """R rows over one range of columns. Everything that is measured is float64 on the CPU."""

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """`[R, D]` the rows themselves."""

    @property
    @abstractmethod
    def gram(self) -> Tensor:
        """`[R, R]` inner products."""

    @property
    @abstractmethod
    def norms(self) -> Tensor:
        """`[R]` Euclidean norms."""

    @property
    @abstractmethod
    def squared_distances(self) -> Tensor:
        """`[R, R]` squared distances, exact for near-copies."""

    @abstractmethod
    def products(self, vector_D: Tensor) -> Tensor:
        """`[R]` inner products with a vector."""

    @abstractmethod
    def weighted_sum(self, coefficients_R: Tensor) -> Tensor:
        """`[D]` sum of the rows with coefficients, in their dtype."""

    @abstractmethod
    def columns(self, index: Tensor) -> Tensor:
        """`[R, n]` float64: some columns of the rows."""

    def distances_from(self, vector_D: Tensor) -> Tensor:
        """`[R]` distances from a vector."""
        squares_R = self.norms.square() + float(vector_D.double().square().sum())
        squared_R = (squares_R - 2 * self.products(vector_D)).clamp(min=0)
        if bool((squared_R < CANCELLED * squares_R).any()):
            return Sent(self.rows).distances_from(vector_D)
        return squared_R.sqrt()


class Sent(Block):
    """The rows as they were sent.

    Args:
        rows: `[C, D]` finite, floating point; never modified.
        products_follow: whether the inner products will be needed anyway: norms are then their diagonal.
    """

    def __init__(self, rows: Tensor, products_follow: bool = False):
        self._rows = rows
        self.products_follow = products_follow

    @property
    def rows(self) -> Tensor:
        """The matrix itself, not a copy."""
        return self._rows

    @cached_property
    def gram(self) -> Tensor:
        """One pass."""
        return gram(self._rows)

    @cached_property
    def norms(self) -> Tensor:
        """From the inner products where these are known, else one cheaper pass."""
        if self.products_follow or "gram" in self.__dict__:
            return self.gram.diagonal().clamp(min=0).sqrt()
        if self._rows.device.type != "cpu":
            norms: Tensor = torch.linalg.vector_norm(self._rows, dim=1, dtype=torch.float64)
            return norms.cpu()
        widened = (row.double() for row in self._rows)  # a row at a time stays in cache: eight times faster
        return torch.stack([row @ row for row in widened]).sqrt()

    @cached_property
    def squared_distances(self) -> Tensor:
        """From the inner products; near-copies are measured again."""
        return squared_distances(self._rows, self.gram)

    def _pieces(self, columns: slice, vector_D: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of some columns, and of a vector, that are widened at a time."""
        blocks = torch.split(self._rows[:, columns], COLUMNS, 1), torch.split(vector_D[columns], COLUMNS)
        return zip(*blocks, strict=True)

    def products(self, vector_D: Tensor) -> Tensor:
        """One pass, in float64: model and update may differ by five orders of magnitude."""
        vector_D = vector_D.to(self._rows.device)

        def part(columns: slice) -> Tensor:
            pieces = self._pieces(columns, vector_D)
            return torch.stack([(rows.double() @ piece.double()).cpu() for rows, piece in pieces]).sum(0)

        return torch.stack(by_columns(part, self._rows.shape[1], self._rows.device)).sum(0)

    def weighted_sum(self, coefficients_R: Tensor) -> Tensor:
        """One pass."""
        return weighted_sum(self._rows, coefficients_R)

    def columns(self, index: Tensor) -> Tensor:
        """A gather."""
        return self._rows[:, index.to(self._rows.device)].double().cpu()

    def distances_from(self, vector_D: Tensor) -> Tensor:
        """One pass over the differences themselves."""
        vector_D = vector_D.to(self._rows.device)

        def part(columns: slice) -> Tensor:
            pieces = self._pieces(columns, vector_D)
            return torch.stack([(rows.double() - piece.double()).square().sum(1).cpu() for rows, piece in pieces]).sum(
                0
            )

        return torch.stack(by_columns(part, self._rows.shape[1], self._rows.device)).sum(0).sqrt()


class Kept(Block):
    """Some of another block's rows."""

    def __init__(self, parent: Block, index: Tensor):
        self.parent, self.index = parent, index

    @cached_property
    def rows(self) -> Tensor:
        """A gather."""
        return self.parent.rows[self.index.to(self.parent.rows.device)]

    @property
    def gram(self) -> Tensor:
        """Part of what was measured."""
        return self.parent.gram[self.index][:, self.index]

    @property
    def norms(self) -> Tensor:
        """Part of what was measured."""
        return self.parent.norms[self.index]

    @property
    def squared_distances(self) -> Tensor:
        """Part of what was measured."""
        return self.parent.squared_distances[self.index][:, self.index]

    def products(self, vector_D: Tensor) -> Tensor:
        """Those of all rows, then part of them."""
        return self.parent.products(vector_D)[self.index]

    def weighted_sum(self, coefficients_R: Tensor) -> Tensor:
        """The other rows have the coefficient 0."""
        every = torch.zeros(len(self.parent.norms), dtype=torch.float64)
        every[self.index] = coefficients_R.to("cpu", torch.float64)
        return self.parent.weighted_sum(every)

    def columns(self, index: Tensor) -> Tensor:
        """Those of all rows, then part of them."""
        return self.parent.columns(index)[self.index]

    def distances_from(self, vector_D: Tensor) -> Tensor:
        """Those of all rows, then part of them."""
        return self.parent.distances_from(vector_D)[self.index]


class Scaled(Block):
    """Another block's rows, each times its own factor."""

    def __init__(self, parent: Block, factors_R: Tensor):
        self.parent, self.given = parent, factors_R
        self.factors = factors_R.to("cpu", torch.float64)

    @cached_property
    def rows(self) -> Tensor:
        """One product, written once."""
        return self.parent.rows * self.given.to(self.parent.rows)[:, None]

    @cached_property
    def gram(self) -> Tensor:
        """s_i s_j G_ij."""
        return self.factors[:, None] * self.factors * self.parent.gram

    @cached_property
    def norms(self) -> Tensor:
        """|s_i| n_i."""
        return self.factors.abs() * self.parent.norms

    @cached_property
    def squared_distances(self) -> Tensor:
        """See the module; all at once."""
        s, norms = self.factors, self.parent.norms.square()
        near_RR = s[:, None] * s * self.parent.squared_distances
        apart_RR = (s[:, None] - s) * (s[:, None] * norms[:, None] - s * norms)
        return checked(near_RR + apart_RR, near_RR.abs() + apart_RR.abs(), self)

    def products(self, vector_D: Tensor) -> Tensor:
        """WeightedMean."""
        return self.factors * self.parent.products(vector_D)

    def weighted_sum(self, coefficients_R: Tensor) -> Tensor:
        """WeightedMean."""
        return self.parent.weighted_sum(coefficients_R.to("cpu", torch.float64) * self.factors)

    def columns(self, index: Tensor) -> Tensor:
        """WeightedMean."""
        return self.factors[:, None] * self.parent.columns(index)


class Mixtures(Block):
    """Means of another block's rows.

    Args:
        parent: C rows.
        shares_RC: `[R, C]` float64, rows that sum to 1.
    """

    def __init__(self, parent: Block, shares_RC: Tensor):
        self.parent, self.shares = parent, shares_RC

    @cached_property
    def rows(self) -> Tensor:
        """One matrix product."""
        rows = self.parent.rows
        dtype = torch.promote_types(rows.dtype, torch.float32)
        return (self.shares.to(rows.device, dtype) @ rows.to(dtype)).to(rows.dtype)

    @cached_property
    def gram(self) -> Tensor:
        """N G N^T."""
        return self.shares @ self.parent.gram @ self.shares.T

    @cached_property
    def norms(self) -> Tensor:
        """See the module; a mean that nearly vanishes is measured itself."""
        squares_R = self.shares @ self.parent.norms.square()
        inside_R = ((self.shares @ self.parent.squared_distances) * self.shares).sum(1) / 2
        squared_R = squares_R - inside_R
        if bool((squared_R < CANCELLED * squares_R).any()):
            return Sent(self.rows).norms
        return squared_R.clamp(min=0).sqrt()

    @cached_property
    def squared_distances(self) -> Tensor:
        """See the module: D_ij - (D_ii + D_jj) / 2 with D = N d^2 N^T, exactly 0 between equal mixtures."""
        squared_CC = self.parent.squared_distances
        inner_RR = self.shares @ squared_CC @ self.shares.T
        within_R = inner_RR.diagonal()
        mixed_RR = inner_RR - (within_R[:, None] + within_R) / 2
        apart_RR = torch.cdist(self.shares, self.shares, p=1)
        if len(self.shares) <= EXACT_ROWS:
            delta = (self.shares[:, None] - self.shares).abs()
            terms_RR = ((delta @ squared_CC) * delta).sum(-1) / 2
        else:
            terms_RR = apart_RR.square() * squared_CC.max() / 2
        return checked(mixed_RR.masked_fill(apart_RR == 0, 0.0), terms_RR, self)

    def products(self, vector_D: Tensor) -> Tensor:
        """WeightedMean."""
        return self.shares @ self.parent.products(vector_D)

    def weighted_sum(self, coefficients_R: Tensor) -> Tensor:
        """WeightedMean."""
        return self.parent.weighted_sum(coefficients_R.to("cpu", torch.float64) @ self.shares)

    def columns(self, index: Tensor) -> Tensor:
        """WeightedMean."""
        return self.shares @ self.parent.columns(index)


def checked(squared_RR: Tensor, terms_RR: Tensor, block: Block) -> Tensor:
    """Squared distances; those that are small against the terms they were computed from are measured on the rows."""
    squared_RR = squared_RR.clamp(min=0).fill_diagonal_(0)
    doubtful_RR = squared_RR < CANCELLED * terms_RR
    if bool(doubtful_RR.fill_diagonal_(False).any()):
        squared_RR = torch.where(doubtful_RR, squared_distances(block.rows), squared_RR)
    original = (squared_RR == 0).int().argmax(1)  # rounding must not tell a row from its copy, nor break their tie
    return squared_RR[original][:, original]


def weighted_sum(updates_CD: Tensor, coefficients_C: Tensor) -> Tensor:
    """`[D]` sum_i c_i x_i in the dtype of the updates, without a copy of the matrix; 16-bit rows are summed in float32."""
    dtype = torch.promote_types(updates_CD.dtype, torch.float32)
    coefficients_C = coefficients_C.to(updates_CD.device, dtype)
    if updates_CD.dtype == dtype:
        return coefficients_C @ updates_CD
    blocks = torch.split(updates_CD, COLUMNS, dim=1)
    return torch.cat([(coefficients_C @ block.to(dtype)).to(updates_CD.dtype) for block in blocks])


def distances_to_mean(updates_CD: Tensor, shares_C: Tensor) -> Tensor:
    """`[C]` float64 on the CPU: distances of the rows from their mean with the given shares, in one pass."""
    dtype = torch.promote_types(updates_CD.dtype, torch.float32)
    shares_C = shares_C.to(updates_CD.device, dtype)

    def part(columns: slice) -> Tensor:
        squared_C = torch.zeros(len(updates_CD), dtype=torch.float64)
        blocks = torch.split(updates_CD[:, columns], max(1, BLOCK_ENTRIES // len(updates_CD)), dim=1)
        for block_CB in (block.to(dtype) for block in blocks):
            away_CB = block_CB - shares_C @ block_CB
            norms_C = torch.linalg.vector_norm(away_CB, dim=1).cpu().double()
            if not bool(norms_C.isfinite().all()):  # float32 squares overflow beyond 1e19
                norms_C = torch.linalg.vector_norm(away_CB.cpu().double(), dim=1)
            squared_C += norms_C.square()
        return squared_C

    return torch.stack(by_columns(part, updates_CD.shape[1], updates_CD.device)).sum(0).sqrt()
