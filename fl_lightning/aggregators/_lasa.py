"""LASA: clipped rows lose their small entries, and every layer is averaged over the rows that are usual in it.

References:
    Xu, Zhang, Hu, "Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model Aggregation", WACV 2025,
    algorithm 1. `sparse` averages what is left of the rows, as the title says and the authors' program does; `dense` the clipped
    rows.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators._base import Aggregate, Aggregator
from fl_lightning.aggregators._layout import Layer
from fl_lightning.aggregators._past import Past
from fl_lightning.registry import Tunable

FEWEST = 4  # rows that are judged; of fewer all stay
EQUAL = 1e-12  # a standard deviation below this share of the largest number is rounding


class Layered(NamedTuple):
    """What LASA makes of the rows.

    Attributes:
        update: `[D]`.
        kept: `[C, L]` bool, who counts in each layer.
    """

    update: Tensor
    kept: Tensor


def lasa(
    updates_CD: Tensor,
    layers: Sequence[Layer],
    *,
    sparsity: float = 0.3,
    lambda_n: float = 2.0,
    lambda_s: float = 1.0,
    average: Literal["sparse", "dense"] = "sparse",
) -> Layered:
    """Layer by layer the mean of the rows whose norm and sign purity are usual there.

    Rows are clipped to the median norm; of the entries of all weights (tensors of two or more dimensions) the `sparsity`
    smallest are set to 0. In every layer the rows count with MZ(|s_i|) < lambda_n and MZ(q_i) < lambda_s, where MZ(v)_i =
    |v_i - med| / std and q = (1 + sum sign(s) / sum |sign(s)|) / 2; all where there is none.

    Args:
        updates_CD: `[C, D]` finite, floating point.
        layers: of the columns; statistics are averaged over the rows that count in some layer.
        sparsity: share of the weights' entries that are set to 0, from 0 to 1.
        lambda_n: bound for the norms.
        lambda_s: bound for the signs.
        average: whether the sparse rows are averaged, or the clipped ones.
    """
    trained = max((layer.slice.stop for layer in layers if layer.trained), default=0)
    norms_C = torch.linalg.vector_norm(updates_CD[:, :trained], dim=1, dtype=torch.float64)
    bound = norms_C.double().quantile(0.5)
    factors_C = torch.where(norms_C > bound, bound / norms_C.clamp(min=1e-300), 1.0)
    clipped_CD = updates_CD.clone()
    clipped_CD[:, :trained] *= factors_C.to(updates_CD)[:, None]
    sparse_CD = sparsified(clipped_CD, layers, sparsity)
    averaged_CD = sparse_CD if average == "sparse" else clipped_CD
    kept_CL = torch.stack(
        [usual(sparse_CD[:, layer.slice], lambda_n, lambda_s) for layer in layers if layer.trained], 1
    )
    update_D = updates_CD[kept_CL.any(1)].mean(0)
    for layer, kept_C in zip((layer for layer in layers if layer.trained), kept_CL.T, strict=True):
        update_D[layer.slice] = averaged_CD[kept_C, layer.slice].mean(0)
    return Layered(update_D, kept_CL)


def sparsified(rows_CD: Tensor, layers: Sequence[Layer], sparsity: float) -> Tensor:
    """`[C, D]` the rows with the smallest entries of the weights of all layers together set to 0."""
    weights = [layer.slice for layer in layers if layer.trained and len(layer.shape) > 1]
    if not weights:
        return rows_CD
    columns = torch.cat([torch.arange(part.start, part.stop, device=rows_CD.device) for part in weights])
    entries = rows_CD[:, columns]
    n_kept = int((1 - sparsity) * len(columns) + 1e-9)
    large = entries.abs().topk(n_kept, dim=1, sorted=False).indices
    sparse_CD = rows_CD.clone()
    sparse_CD[:, columns] = torch.zeros_like(entries).scatter_(1, large, entries.gather(1, large))
    return sparse_CD


def usual(rows_CB: Tensor, lambda_n: float, lambda_s: float) -> Tensor:
    """`[C]` bool, rows whose norm and whose balance of signs are within the bounds; all where none is."""
    signs_CB = rows_CB.sign()
    some_C = signs_CB.abs().sum(1)
    purity_C = (1 + torch.where(some_C > 0, signs_CB.sum(1) / some_C.clamp(min=1), 0.0)) / 2
    norms_C = torch.linalg.vector_norm(rows_CB, dim=1, dtype=torch.float64)
    kept_C = (deviations(norms_C) < lambda_n) & (deviations(purity_C) < lambda_s)
    return kept_C if bool(kept_C.any()) and len(kept_C) >= FEWEST else torch.ones_like(kept_C)


def deviations(values_C: Tensor) -> Tensor:
    """`[C]` float64, |v_i - median| / std; all 0 where the numbers are equal but for rounding."""
    values_C = values_C.double()
    std = values_C.std(correction=0)
    if std <= EQUAL * values_C.abs().max():
        return torch.zeros_like(values_C)
    return (values_C - values_C.quantile(0.5)).abs() / std


class Lasa(Aggregator):
    """Mean, layer by layer, of sparsified rows whose norm and signs are usual there; takes no weights.

    Both bounds leave few rows to a layer, and which ones changes from round to round. With `lambda_n` 1, the default of the
    authors' program, a layer keeps some six of 14 honest rows, and attackers that look usual, such as label flippers, are between
    0.12 and 0.55 of what counts; accuracy swings with them (digits, 6 of 20 clients, seed 0: 0.36 to 0.69; with `lambda_n` 2 it
    rises to 0.82 and stays). Means over `sparse` and `dense` rows swing alike.

    Attributes:
        sparsity: share of the weights' entries that are set to 0.
        lambda_n: bound for the norms, in standard deviations from the median.
        lambda_s: bound for the balance of signs.
        average: whether the sparse rows are averaged, or the clipped ones.
    """

    name: ClassVar[str] = "lasa"
    cites: ClassVar[tuple[str, ...]] = ("xu2025lasa",)
    uses_past: ClassVar[bool] = True
    translation_equivariant: ClassVar[bool] = False

    @property
    def returns_equal_rows(self) -> bool:  # type: ignore[override]
        """Not without their small entries."""
        return self.average == "dense" or self.sparsity == 0

    sparsity: Annotated[float, Tunable(0, 0.9)] = Field(default=0.3, ge=0, lt=1)
    lambda_n: Annotated[float, Tunable(0.5, 4)] = Field(default=2.0, gt=0)
    lambda_s: Annotated[float, Tunable(0.5, 4)] = Field(default=1.0, gt=0)
    average: Literal["sparse", "dense"] = "sparse"

    def aggregate(self, updates_CD: Tensor, weights_C: Tensor | None, *, past: Past | None = None) -> Aggregate:
        """Rows are kept that count in at least one layer; the score is minus the share of layers."""
        layered = self._layered(updates_CD, past)
        shares_C = layered.kept.double().mean(1)
        return Aggregate(layered.update, shares_C > 0, -shares_C)

    def shares(
        self, updates_CD: Tensor, weights_C: Tensor | None, result: Aggregate | None, *, past: Past | None = None
    ) -> Tensor:
        """Mean over the layers of each row's share in them."""
        kept_CL = self._layered(updates_CD, past).kept.double()
        return (kept_CL / kept_CL.sum(0)).mean(1)

    def _layered(self, updates_CD: Tensor, past: Past | None) -> Layered:
        whole = Layer("all", slice(0, updates_CD.shape[1]), (1, updates_CD.shape[1]))
        layout = past.layout if past else None
        return lasa(
            updates_CD,
            (whole,) if layout is None else layout.layers,
            sparsity=self.sparsity,
            lambda_n=self.lambda_n,
            lambda_s=self.lambda_s,
            average=self.average,
        )
