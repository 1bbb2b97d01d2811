"""FreqFed: low frequencies of the weights are clustered, and the majority stays.

References:
    Fereidooni, Pegoraro, Rieger, Dmitrienko, Sadeghi, "FreqFed: A Frequency Analysis-Based Approach for Mitigating Poisoning
    Attacks in Federated Learning", NDSS 2024, algorithm 1.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Geometry
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, trained_of
from fl_lightning.defenses._clusters import majority
from fl_lightning.defenses._verdicts import filtered, trained_model
from fl_lightning.registry import Choice, Tunable


def low_frequencies(rows_CD: Tensor, low: float = 0.5) -> Tensor:
    """`[C, F]` float64 on the CPU, the first floor(`low` D) coefficients of the rows' orthonormal DCT-II.

    Example:
        >>> low_frequencies(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), low=0.25).round()
        tensor([[2.]], dtype=torch.float64)
    """
    from scipy.fft import dct

    spectrum = dct(rows_CD.double().cpu().numpy(), type=2, norm="ortho", axis=1)
    return torch.from_numpy(spectrum[:, : max(1, int(low * rows_CD.shape[1] + 1e-9))].copy())


def low_frequencies_of_tensors(rows_CD: Tensor, shapes: Sequence[tuple[int, ...]], low: float = 0.5) -> Tensor:
    """`[C, F]` the same for each tensor as a matrix: coefficients i, j of its 2-D DCT with i + j < `low` (rows + columns).

    Args:
        rows_CD: `[C, D]`, the tensors one after the other.
        shapes: of the tensors; from three dimensions on, the first stays and the others are one.
        low: 1/2 in the paper.
    """
    from scipy.fft import dctn

    parts, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        flat = rows_CD[:, start : start + size].double().cpu().numpy()
        height = shape[0] if len(shape) > 1 else 1
        blocks = flat.reshape(len(flat), height, -1)
        spectrum = dctn(blocks, type=2, norm="ortho", axes=(1, 2))
        i, j = np.indices(spectrum.shape[1:])
        parts.append(spectrum[:, i + j < low * sum(spectrum.shape[1:])])
        start += size
    return torch.from_numpy(np.concatenate(parts, axis=1))


class Freqfed(Defense):
    """Keeps the majority cluster by angle between the low frequencies of the weights.

    Attributes:
        of: whether the models, as printed, or the updates are transformed.
        shape: the 2-D transform of every weight tensor, as printed, or one transform of the whole vector.
        low: share of the frequencies that counts.
    """

    name: ClassVar[str] = "freqfed"
    cites: ClassVar[tuple[str, ...]] = ("fereidooni2024freqfed",)

    of: Annotated[Literal["models", "updates"], Choice(("models", "updates"))] = "models"
    shape: Annotated[Literal["tensor", "flat"], Choice(("tensor", "flat"))] = "tensor"
    low: Annotated[float, Tunable(0.1, 1)] = Field(default=0.5, gt=0, le=1)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows outside of the cluster go; without a cluster all stay. The score is the mean distance to the others."""
        low_CF = self._spectrum(trained_of(updates_CD, context), context)
        geometry = Geometry(low_CF)
        if self.of == "models":
            distances_CC = geometry.model_cosine_distances(self._spectrum(trained_model(context)[None], context)[0])
        else:
            distances_CC = geometry.cosine_distances
        return filtered(updates_CD, context, majority(distances_CC), scores_C=distances_CC.mean(1))

    def _spectrum(self, rows_CD: Tensor, context: ServerContext) -> Tensor:
        if self.shape == "flat" or context.layout is None:
            return low_frequencies(rows_CD, self.low)
        shapes = [layer.shape for layer in context.layout.layers if layer.trained]
        return low_frequencies_of_tensors(rows_CD, shapes, self.low)
