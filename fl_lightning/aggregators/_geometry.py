"""What rules and filters measure of the rows, computed at most once a round and carried through what is done to them.

Norms, inner products and distances of C rows are `[C, C]` numbers; getting them reads the `[C, D]` matrix once. Rows that are
dropped, scaled or mixed (`x' = W x`) have theirs by arithmetic in `[C, C]`, so that a chain of defenses, pre-aggregators and a
rule that is a weighted mean reads the matrix twice: once to measure, once to sum.

Distances are never taken out of the products `W G W^T`, which cancel. With squared norms n^2 and squared distances d^2,

    scaled:  d'_ij^2 = s_i s_j d_ij^2 + (s_i - s_j) (s_i n_i^2 - s_j n_j^2)
    mixed (rows of N sum to 1):  d'_ij^2 = -1/2 delta^T d^2 delta, delta = N_i - N_j;  n'_i^2 = N_i n^2 - 1/2 N_i d^2 N_i^T

and what is small against its own terms is measured again on the rows themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from copy import copy
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


def cosine_distances(squared_RR: Tensor, norms_R: Tensor, gaps_RR: Tensor) -> Tensor:
    """`[R, R]` 1 - cosine = (d^2 - (n_i - n_j)^2) / (2 n_i n_j) from exact distances; 1 where a norm is 0."""
    scale_RR = 2 * norms_R[:, None] * norms_R
    far_RR = (squared_RR - gaps_RR.square()) / scale_RR.clamp(min=1e-300)
    return torch.where(scale_RR > 0, far_RR.clamp(0, 2), 1.0).fill_diagonal_(0)


class Geometry:
    """Lazily measured rows of a round, and what becomes of them.

    Parameters (the first columns) and running statistics of normalisation layers (the rest, where a model has any) are measured
    apart: filters look at `trained`, rules at whole rows.

    Args:
        updates_CD: `[C, D]` finite, floating point; never modified.
        trained: how many columns, the first ones, are parameters; None: all.
        products_follow: whether inner products will be needed anyway, so that norms may be read from them.

    Example:
        >>> geometry = Geometry(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> geometry.norms.tolist(), geometry.scale(torch.tensor([0.5, 1.0])).norms.tolist()
        ([5.0, 1.0], [2.5, 1.0])
    """

    def __init__(self, updates_CD: Tensor, trained: int | None = None, *, products_follow: bool = False):
        self._matrix: Tensor | None = updates_CD
        split = updates_CD.shape[1] if trained is None else trained
        parts = [updates_CD] if split == updates_CD.shape[1] else [updates_CD[:, :split], updates_CD[:, split:]]
        self._parts: tuple[Block, ...] = tuple(Sent(part, products_follow) for part in parts)
        self._size, self._split, self.dimension = len(updates_CD), split, updates_CD.shape[1]

    def _with(self, parts: Iterable[Block], size: int | None = None) -> "Geometry":
        """Other rows over the same columns."""
        geometry = copy(self)
        geometry._matrix, geometry._parts = None, tuple(parts)
        geometry._size = self._size if size is None else size
        return geometry

    def __len__(self) -> int:
        return self._size

    @property
    def trained(self) -> "Geometry":
        """The same rows without running statistics."""
        if len(self._parts) == 1:
            return self
        part = self._with(self._parts[:1])
        part.dimension = self._split
        return part

    @property
    def products_follow(self) -> bool:
        """Whether norms are read from inner products, which something after this needs anyway."""
        first = self._parts[0]
        return not isinstance(first, Sent) or first.products_follow

    @property
    def made(self) -> bool:
        """Whether the rows exist as a matrix: as they were sent, or written already."""
        return self._matrix is not None

    @property
    def rows(self) -> Tensor:
        """`[R, D]` the rows themselves, made on demand; the matrix itself as long as nothing was done to it."""
        if self._matrix is None:
            parts = [part.rows for part in self._parts]
            self._matrix = parts[0] if len(parts) == 1 else torch.cat(parts, 1)  # kept: several may ask
        return self._matrix

    @property
    def gram(self) -> Tensor:
        """`[R, R]` inner products."""
        return self._parts[0].gram if len(self._parts) == 1 else self._parts[0].gram + self._parts[1].gram

    @property
    def norms(self) -> Tensor:
        """`[R]` Euclidean norms."""
        first, *rest = (part.norms for part in self._parts)
        return torch.hypot(first, rest[0]) if rest else first

    @property
    def squared_distances(self) -> Tensor:
        """`[R, R]` squared Euclidean distances, exact also for near-copies; 0 on the diagonal."""
        first, *rest = (part.squared_distances for part in self._parts)
        return first + rest[0] if rest else first

    def products_around(self, row: int) -> Tensor:
        """`[R, R]` inner products measured from one of the rows."""
        if len(self._parts) == 1 and isinstance(self._parts[0], Sent):
            return gram(self._parts[0].rows, row)
        squared_RR = self.squared_distances
        return (squared_RR[:, row, None] + squared_RR[row] - squared_RR) / 2

    @property
    def cosines(self) -> Tensor:
        """`[R, R]` cosines, 0 where a norm is 0. For what is close to 1 use `cosine_distances`."""
        norms_R = self.norms
        scale_RR = norms_R[:, None] * norms_R
        return torch.where(scale_RR > 0, self.gram / scale_RR.clamp(min=1e-300), 0.0).clamp(-1, 1)

    @property
    def cosine_distances(self) -> Tensor:
        """`[R, R]` 1 - cosine without cancellation, 1 where a norm is 0; 0 on the diagonal."""
        norms_R = self.norms
        return cosine_distances(self.squared_distances, norms_R, norms_R[:, None] - norms_R)

    def model_cosine_distances(self, global_D: Tensor) -> Tensor:
        """`[R, R]` 1 - cosine of the models `global + row`, in one more pass; 0 on the diagonal.

        Their norms differ by far less than a rounded square root tells, so the differences follow from the products:
        m_i - m_j = (2 <x_i - x_j, theta> + n_i^2 - n_j^2) / (m_i + m_j).
        """
        towards_R, squares_R = self.products(global_D), self.norms.square()
        excess_R = 2 * towards_R + squares_R
        models_R = (float(global_D.double().square().sum()) + excess_R).clamp(min=0).sqrt()
        sums_RR = (models_R[:, None] + models_R).clamp(min=1e-300)
        return cosine_distances(self.squared_distances, models_R, (excess_R[:, None] - excess_R) / sums_RR)

    def products(self, vector_D: Tensor) -> Tensor:
        """`[R]` inner products with a vector, in one pass."""
        return self._by_part(vector_D, lambda part, piece: part.products(piece))

    def distances_from(self, vector_D: Tensor) -> Tensor:
        """`[R]` distances from a vector, in one pass."""
        return self._by_part(vector_D, lambda part, piece: part.distances_from(piece).square()).sqrt()

    def distances_to(self, shares_R: Tensor) -> Tensor:
        """`[R]` distances of the rows from their mean with the given shares, in one pass."""
        return distances_to_mean(self.rows, shares_R)

    def weighted_sum(self, coefficients_R: Tensor) -> Tensor:
        """`[D]` sum of the rows with coefficients, in one pass over what was sent."""
        if self._matrix is not None:
            return weighted_sum(self._matrix, coefficients_R)
        parts = [part.weighted_sum(coefficients_R) for part in self._parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def columns(self, index: Tensor) -> Tensor:
        """`[R, n]` float64 on the CPU: some columns of the rows, by number."""
        if len(self._parts) == 1:
            return self._parts[0].columns(index)
        inside = index < self._split
        columns = torch.empty(self._size, len(index), dtype=torch.float64)
        columns[:, inside] = self._parts[0].columns(index[inside])
        columns[:, ~inside] = self._parts[1].columns(index[~inside] - self._split)
        return columns

    def _by_part(self, vector_D: Tensor, measure: Callable[[Block, Tensor], Tensor]) -> Tensor:
        """Sum over the parts of what a function says about a part and the vector's."""
        pieces = [vector_D] if len(self._parts) == 1 else [vector_D[: self._split], vector_D[self._split :]]
        return torch.stack([measure(*pair) for pair in zip(self._parts, pieces, strict=True)]).sum(0)

    def keep(self, kept_R: Tensor) -> "Geometry":
        """The rows that a mask keeps; itself where it keeps all."""
        if bool(kept_R.all()):
            return self
        index = kept_R.cpu().nonzero().flatten()
        return self._with((Kept(part, index) for part in self._parts), len(index))

    def scale(self, factors_R: Tensor) -> "Geometry":
        """Every row times its factor; statistics are never scaled up."""
        first, *rest = self._parts
        scaled: list[Block] = [Scaled(first, factors_R), *(Scaled(part, factors_R.clamp(max=1)) for part in rest)]
        return self._with(scaled)

    def mix(self, matrix_RC: Tensor) -> "Geometry":
        """`x' = W x` for a non-negative matrix: a diagonal one scales, any other gives means of rows, times its row sums.

        Args:
            matrix_RC: `[R, C]` non-negative, no row all zero.
        """
        matrix_RC = matrix_RC.to("cpu", torch.float64)
        if matrix_RC.shape == (self._size, self._size) and torch.equal(matrix_RC, matrix_RC.diagonal().diag()):
            return self if bool((matrix_RC.diagonal() == 1).all()) else self.scale(matrix_RC.diagonal())
        sums_R = matrix_RC.sum(1)
        shares_RC = matrix_RC / sums_R[:, None]
        mixed = self._with((Mixtures(part, shares_RC) for part in self._parts), len(matrix_RC))
        return mixed if bool((sums_R - 1).abs().max() < 1e-12) else mixed.scale(sums_R)
