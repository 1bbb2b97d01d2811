"""FLTrust: the server trains on samples of its own, trusts updates as far as they point the same way, and sets their length.

References:
    Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021, algorithm 2.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.aggregators import Aggregator, Mean
from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, geometry_of
from fl_lightning.defenses._rejection import need_validation
from fl_lightning.defenses._root import root_rows, server_update
from fl_lightning.defenses._verdicts import filtered
from fl_lightning.errors import ConfigError


class Trust(NamedTuple):
    """How far rows are trusted.

    Attributes:
        trust_C: `[C]` from 0 to 1, max(0, cosine).
        scale_C: `[C]` factors |r| / n_i; 0 for a row of zeros.
        cosine_C: `[C]` cosines with the server's update r.
    """

    trust_C: Tensor
    scale_C: Tensor
    cosine_C: Tensor


def fltrust(along_C: Tensor, norms_C: Tensor, length: float) -> Trust:
    """Trust scores; the update is sum_i T_i (|r| / n_i) x_i / sum_i T_i with T_i = max(0, cos(x_i, r)).

    Args:
        along_C: `[C]` products <x_i, r> with the server's update r.
        norms_C: `[C]` norms n_i.
        length: |r|.

    Example:
        >>> fltrust(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([2.0, 4.0, 0.0]), 1.0).trust_C
        tensor([1., 0., 0.])
    """
    known_C = (norms_C > 0) & (torch.tensor(length, device=norms_C.device) > 0)
    safe_C = norms_C.clamp(min=1e-300)
    cosine_C = torch.where(known_C, along_C / (safe_C * max(length, 1e-300)), 0.0).clamp(-1, 1)
    return Trust(cosine_C.clamp(min=0), torch.where(known_C, length / safe_C, 0.0), cosine_C)


class Fltrust(Defense):
    """Weighs rows by their cosine with an update that the server trains itself, and gives all of them its length.

    The weights replace sample counts. The server trains as the clients do: with another learning rate the step would have another
    length. Trust is not detection: whoever points roughly the right way keeps some.

    Attributes:
        root_samples: how many validation samples the server trains on, the same in all rounds.
        root_bias: (class, share): a share of them is of one class; None: as they come.
    """

    name: ClassVar[str] = "fltrust"
    cites: ClassVar[tuple[str, ...]] = ("cao2021fltrust",)
    on_empty: ClassVar[Literal["keep_all", "skip"]] = "skip"
    needs_samples: ClassVar[bool] = True
    reads_rows: ClassVar[bool] = False

    root_samples: int = Field(default=100, ge=1)
    root_bias: tuple[int, float] | None = None

    def check(self, aggregator: Aggregator, validation: bool) -> None:
        """The server has samples, and takes the mean."""
        need_validation(self.name, validation or None)
        if not isinstance(aggregator, Mean):
            raise ConfigError(f"fltrust is a weighted mean: set aggregator to mean, got {aggregator.name}")

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Rows without trust go; the round is skipped when nobody has any. The score is minus the cosine."""
        samples = need_validation(self.name, context.validation)
        rows = root_rows(self.name, context, state, self.root_samples, self.root_bias)
        geometry = geometry_of(updates_CD, context).trained
        trusted_D = server_update(self.name, context, samples[rows])
        trust = fltrust(geometry.products(trusted_D), geometry.norms, float(trusted_D.double().norm()))
        weights_C = trust.trust_C.to(context.weights_C)
        verdict = filtered(
            updates_CD,
            context,
            weights_C > 0,
            scale_C=trust.scale_C,
            scores_C=-trust.cosine_C,
            state={"root": rows},
            metrics={"trust": float(weights_C.mean()), "norm": float(trusted_D.norm())},
            skip=True,
        )
        return verdict._replace(weights_C=weights_C)
