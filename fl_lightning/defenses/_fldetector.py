"""FLDetector: an honest client's next update can be predicted from its last and the server's; who is surprising goes.

References:
    Zhang, Cao, Jia, Gong, "FLDetector: Defending Federated Learning Against Model Poisoning Attacks via Detecting Malicious
    Clients", KDD 2022, algorithm 1 and equations 3 to 5.
    Byrd, Nocedal, Schnabel, "Representations of quasi-Newton matrices and their use in limited memory methods", Mathematical
    Programming 1994, theorem 2.3.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fl_lightning.defenses._base import Defense, ServerContext, State, Verdict, clients_of, population_of, trained_of
from fl_lightning.defenses._clusters import exact_errors, gap_statistic, two_means
from fl_lightning.defenses._verdicts import filtered, recalled, recalled_flags, trained_model
from fl_lightning.registry import Tunable


def lbfgs_product(steps_WD: Tensor, changes_WD: Tensor, v_D: Tensor) -> Tensor | None:
    """B v with the compact L-BFGS estimate of the Hessian; None where it is not defined.

    sigma = <y_m, s_m> / <s_m, s_m>; B v = sigma v - [sigma S, Y] [[sigma S^T S, L], [L^T, -E]]^-1 [sigma S^T v; Y^T v] with
    L the strict lower part of S^T Y and E its diagonal.

    Args:
        steps_WD: `[W, D]` S, differences of the global model, oldest first.
        changes_WD: `[W, D]` Y, differences of the aggregated update over the same rounds.
        v_D: `[D]`.
    """
    if not len(steps_WD):
        return None
    S, Y, v = steps_WD.double(), changes_WD.double(), v_D.double()
    length = float(S[-1] @ S[-1])
    sigma = float(Y[-1] @ S[-1]) / length if length > 0 else 0.0
    if sigma == 0:
        return None
    cross = S @ Y.T
    lower, diagonal = cross.tril(-1), torch.diag(cross.diagonal())
    middle = torch.cat([torch.cat([sigma * S @ S.T, lower], 1), torch.cat([lower.T, -diagonal], 1)])
    right = torch.cat([sigma * (S @ v), Y @ v])
    solved, failed = torch.linalg.solve_ex(middle, right)
    if int(failed) or not bool(solved.isfinite().all()):
        return None
    w = len(S)
    product_D: Tensor = sigma * v - (sigma * solved[:w]) @ S - solved[w:] @ Y
    return product_D.to(v_D.dtype)


def surprises(updates_CD: Tensor, predicted_CD: Tensor) -> Tensor:
    """`[C]` float64, |x_i - predicted_i|, summing to 1 over the rows (all 0 when every prediction is exact).

    Example:
        >>> surprises(torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [2.0]]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    distances_C: Tensor = torch.linalg.vector_norm(updates_CD - predicted_CD, dim=1, dtype=torch.float64)
    return distances_C / distances_C.sum().clamp(min=1e-300)


def surprising(scores_C: Tensor, generator: torch.Generator, k_max: int = 7) -> Tensor:
    """`[C]` bool on the CPU, the group of larger scores where the gap statistic sees more than one group; else nobody.

    Args:
        scores_C: `[C]` mean surprise of the clients.
        generator: of the gap statistic's references.
        k_max: largest number of groups looked for.
    """
    scores_C = scores_C.double().cpu()
    nobody_C = torch.zeros(len(scores_C), dtype=torch.bool)
    if len(scores_C) < 3:
        return nobody_C
    groups = gap_statistic(scores_C[:, None], k_max, exact_errors, generator)
    return two_means(scores_C).upper_C if groups > 1 else nobody_C


class Fldetector(Defense):
    """Ignores from now on the clients whose updates cannot be predicted from their last one and the way of the global model.

    Nothing is judged before the window is full. An attacker who sends the same every round is well predicted, and stays.

    Attributes:
        window: rounds that the Hessian is estimated from and surprises are averaged over.
        k_max: largest number of groups among the surprises that is looked for.
        restart: whether the memory begins anew after clients were found.
        max_memory: limit of the memory in GiB.
    """

    name: ClassVar[str] = "fldetector"
    cites: ClassVar[tuple[str, ...]] = ("zhang2022fldetector", "byrd1994representations")
    stateful: ClassVar[bool] = True

    window: Annotated[int, Tunable(2, 15, integer=True)] = Field(default=10, ge=1)
    k_max: int = Field(default=7, ge=2)
    restart: bool = False
    max_memory: float = Field(default=2.0, gt=0)

    def apply(self, updates_CD: Tensor, context: ServerContext, state: State) -> Verdict:
        """Clients found so far go; a client that was away in the round before is not scored."""
        rows_CD, theta_D, population = (
            trained_of(updates_CD, context),
            trained_model(context),
            population_of(updates_CD, context),
        )
        clients_C = clients_of(updates_CD, context)
        last_ND = recalled(state, "updates", population, rows_CD.shape[1], rows_CD, self.max_memory)
        present_N = torch.zeros(population, dtype=torch.bool)
        present_N[state.get("present", clients_C[:0]).cpu()] = True
        excluded_N = recalled_flags(state, "excluded", population, clients_C.device)
        surprise_WN: Tensor = state.get("surprises", torch.empty(0, population, dtype=torch.float64)).cpu()
        now_N = torch.full((population,), torch.nan, dtype=torch.float64)
        judged = clients_C[present_N[clients_C] & ~excluded_N[clients_C]]
        curved_D = (
            lbfgs_product(state["steps"], state["changes"], theta_D - state["model"]) if "steps" in state else None
        )
        if curved_D is not None and len(judged):
            mine = torch.isin(clients_C, judged).to(rows_CD.device)
            now_N[clients_C[mine.cpu()]] = surprises(rows_CD[mine], last_ND[clients_C[mine.cpu()]] + curved_D).cpu()
        surprise_WN = torch.cat([surprise_WN, now_N[None]])[-self.window :]
        scores_C = surprise_WN[:, clients_C].nanmean(0)
        full = len(state.get("steps", ())) >= self.window
        known = (~scores_C.isnan() & ~excluded_N[clients_C]).nonzero().flatten()
        flagged_C = excluded_N[clients_C]
        if full and len(known):
            flagged_C[known] = surprising(scores_C[known], context.generator(self.name), self.k_max)
        newly = bool((flagged_C & ~excluded_N[clients_C]).any())
        excluded_N[clients_C] |= flagged_C
        remembered = {"excluded": excluded_N}
        if not (newly and self.restart):
            remembered |= self._remember(rows_CD, theta_D, ~flagged_C, context, state, last_ND, surprise_WN)
        return filtered(
            updates_CD,
            context,
            ~flagged_C,
            scores_C=scores_C.nan_to_num(nan=0.0) + flagged_C * 1.0,
            state=remembered,
            metrics={"judging": float(full), "excluded": float(excluded_N.sum())},
        )

    def _remember(
        self,
        rows_CD: Tensor,
        theta_D: Tensor,
        keep_C: Tensor,
        context: ServerContext,
        state: State,
        last_ND: Tensor,
        surprise_WN: Tensor,
    ) -> dict[str, Tensor]:
        """What the next round needs: rows, model, mean of the kept rows, and the pairs of the Hessian's estimate."""
        clients_C = clients_of(rows_CD, context)
        last_ND[clients_C.to(last_ND.device)] = rows_CD
        keep_C = keep_C if bool(keep_C.any()) else torch.ones_like(keep_C)
        shares_C = (context.weights_C * keep_C.to(context.weights_C.device)).to(rows_CD)
        mean_D = shares_C / shares_C.sum() @ rows_CD
        memory = {"updates": last_ND, "present": clients_C, "model": theta_D, "mean": mean_D, "surprises": surprise_WN}
        if "model" in state:
            step_D, change_D = theta_D - state["model"].to(theta_D), mean_D - state["mean"].to(mean_D)
            for name, row_D in (("steps", step_D), ("changes", change_D)):
                known = state.get(name, row_D.new_empty(0, len(row_D)))
                memory[name] = torch.cat([known.to(row_D), row_D[None]])[-self.window :]
        return memory
