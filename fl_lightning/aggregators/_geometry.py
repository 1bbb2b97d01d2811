"""What rules and filters measure of the rows, computed at most once a round and carried through what is done to them.

Norms, inner products and distances of C rows are `[C, C]` numbers; getting them reads the `[C, D]` matrix once. Rows that are
dropped, scaled or mixed (`x' = W x`) have theirs by arithmetic in `[C, C]`, so that a chain of defenses, pre-aggregators and a
rule that is a weighted mean reads the matrix twice: once to measure, once to sum.
"""

from collections.abc import Callable, Iterable
from copy import copy

import torch
from torch import Tensor

from fl_lightning.aggregators._blocks import Block, Kept, Mixtures, Scaled, Sent, distances_to_mean, weighted_sum
from fl_lightning.aggregators._distances import gram


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
