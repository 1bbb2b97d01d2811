"""FLAME: the majority by angle stays, clipped to the median length, and the model is blurred a little.

References:
    Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022, algorithm 1. Every kept row is the
    majority's: with a cluster of more than half of the rows hardly more than half stay, also without an attack.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._clusters import majority
from fl_lightning.defenses._noise import noise
from fl_lightning.defenses._spread import median, shortening
from fl_lightning.defenses._verdicts import filtered, trained_model, trained_slice
from fl_lightning.registry import Choice, Tunable


def flame(distances_CC: Tensor, norms_C: Tensor) -> tuple[Tensor | None, Tensor, float]:
    """Who is in the majority cluster (None: undecided), factors min(1, S / n_i), and S, the median of all norms.

    Args:
        distances_CC: `[C, C]` 1 - cos, of the models in the paper.
        norms_C: `[C]` norms of the updates.
    """
    bound = median(norms_C)
    return majority(distances_CC), shortening(norms_C, bound), float(bound)


class Flame(Defense):
    """Keeps the majority cluster by angle, clips it to the median norm, and adds noise to the model.

    Attributes:
        of: whether angles are taken between models, as printed, or between updates.
        lam: standard deviation of the noise in units of the median norm.
    """

    name: ClassVar[str] = "flame"
    cites: ClassVar[tuple[str, ...]] = ("nguyen2022flame",)
    reads_rows: ClassVar[bool] = False

    of: Annotated[Literal["models", "updates"], Choice(("models", "updates"))] = "models"
    lam: Annotated[float, Tunable(0.0001, 0.1, log=True)] = Field(default=0.001, ge=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows outside of the cluster go; without a cluster all stay. The score is the mean distance to the others."""
        geometry = geometry_of(updates_CD, context).trained
        models = self.of == "models"
        distances_CC = geometry.model_cosine_distances(trained_model(context)) if models else geometry.cosine_distances
        keep_C, scale_C, bound = flame(distances_CC, geometry.norms)
        scores_C = distances_CC.mean(1)
        state, metrics = {"bound": bound}, {"bound": bound}
        return filtered(updates_CD, context, keep_C, scale_C=scale_C, scores_C=scores_C, state=state, metrics=metrics)

    def after_step(self, global_D: Tensor, context: ServerContext, state: State) -> tuple[Tensor, State]:
        """Noise of lam S on the trained parameters."""
        std = self.lam * state.get("bound", 0.0)
        if not std:
            return global_D, state
        trained = trained_slice(context)
        blurred_D = global_D.clone()
        blurred_D[trained] += noise(blurred_D[trained].shape, std, "gaussian", context.generator("flame")).to(global_D)
        return blurred_D, state
