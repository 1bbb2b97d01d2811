"""Auror: a few coordinates in which the rows fall into two distant groups tell honest clients from the others.

References:
    Shen, Tople, Saxena, "Auror: Defending Against Poisoning Attacks in Collaborative Deep Learning Systems", ACSAC 2016,
    section 4.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of, trained_columns
from fl_lightning.defenses._clusters import k_means, two_means
from fl_lightning.defenses._spread import median
from fl_lightning.defenses._verdicts import classifier_columns, filtered
from fl_lightning.registry import Choice


def indicative_columns(rows_CF: Tensor, threshold: float | None = None) -> Tensor:
    """`[F]` bool, columns whose two groups (exact 2-means) have centres at least `threshold` apart.

    Args:
        rows_CF: `[C, F]`.
        threshold: in the unit of the rows; None: twice the median over the columns.

    Example:
        >>> indicative_columns(torch.tensor([[0.0, 1.0], [0.1, 1.0], [5.0, 1.1]]), 1.0)
        tensor([ True, False])
    """
    gaps_F = two_means(rows_CF).gap
    bound = 2 * float(median(gaps_F)) if threshold is None else threshold
    return (gaps_F >= bound) & (gaps_F > 0)


def larger_group(rows_CF: Tensor, beta: float, generator: torch.Generator) -> Tensor:
    """`[C]` bool on the CPU, the larger of two groups by k-means; all rows when the centres are less than beta apart.

    Args:
        rows_CF: `[C, F]` the indicative columns.
        beta: least distance of the centres at which the smaller group is dropped.
        generator: of k-means.
    """
    everybody_C = torch.ones(len(rows_CF), dtype=torch.bool)
    if len(rows_CF) < 2 or not rows_CF.shape[1]:
        return everybody_C
    rows_CF = rows_CF.double().cpu()
    keep_C = k_means(rows_CF, 2, generator) == 0
    if bool(keep_C.all()) or float((rows_CF[keep_C].mean(0) - rows_CF[~keep_C].mean(0)).norm()) < beta:
        return everybody_C
    return keep_C


class Auror(Defense):
    """Keeps the larger of two groups in the few columns in which the rows fall into two distant groups.

    Attributes:
        columns: which columns are looked at.
        calibration: rounds in which indicative columns are looked for; those of the last of them stay.
        threshold: least distance of two groups in an indicative column; None: twice the median over the columns.
        beta: least distance of the two groups at which the smaller one goes.
    """

    name: ClassVar[str] = "auror"
    cites: ClassVar[tuple[str, ...]] = ("shen2016auror",)
    needs_classifier: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    columns: Annotated[Literal["classifier", "all"], Choice(("classifier", "all"))] = "classifier"
    calibration: int = Field(default=10, ge=1)
    threshold: float | None = Field(default=None, gt=0)
    beta: float = Field(default=0.0, ge=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """The smaller group goes; the score is the distance from the mean of the larger one."""
        geometry = geometry_of(updates_CD, context).trained
        if self.columns == "classifier":
            index = classifier_columns(context)
        else:
            index = torch.arange(trained_columns(updates_CD, context).stop)
        rows_CF = geometry.columns(index)
        calibrating = "columns" not in state or context.round < self.calibration
        telling_F = indicative_columns(rows_CF, self.threshold) if calibrating else state["columns"].cpu()
        keep_C = larger_group(rows_CF[:, telling_F], self.beta, context.generator(self.name))
        away_CF = rows_CF[:, telling_F] - rows_CF[:, telling_F][keep_C].mean(0)
        return filtered(
            updates_CD,
            context,
            keep_C,
            scores_C=away_CF.norm(dim=1),
            state={"columns": telling_F},
            metrics={"columns": float(telling_F.sum())},
        )
