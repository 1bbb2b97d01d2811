"""What every aggregator must do.

A package that brings its own aggregator checks it with one line, or one test a check:

    check_aggregator(MyRule(n_byzantine=2))

    @pytest.mark.parametrize("check", AGGREGATOR_CHECKS.values(), ids=AGGREGATOR_CHECKS)
    def test_my_rule(check):
        check(MyRule(n_byzantine=2), "cpu")
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from fl_lightning.aggregators import Aggregate, Aggregator, Mixed, Past
from fl_lightning.randomness import generator
from fl_lightning.registry import registry
from fl_lightning.testing import _checks
from fl_lightning.testing._checks import require, run_all

DIMENSIONS = (3, 1500)  # few and many columns may take different paths
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def check_aggregator(aggregator: Aggregator, device: str = "cpu") -> None:
    """Run every check of `AGGREGATOR_CHECKS`.

    Args:
        aggregator: the component to check.
        device: where the updates live.

    Raises:
        AssertionError: naming the aggregator, the check that failed, and why.

    Example:
        >>> from fl_lightning.aggregators import TrimmedMean
        >>> check_aggregator(TrimmedMean(n_byzantine=2))
    """
    run_all(AGGREGATOR_CHECKS, repr(aggregator), aggregator, device)


def called(aggregator: Aggregator, updates_CD: Tensor, weights_C: Tensor | None = None) -> Aggregate:
    """The rule on rows; one that needs the server's own update gets a vector like an honest row."""
    return aggregator(updates_CD, weights_C, **told(aggregator, updates_CD))


def influence_of(aggregator: Aggregator, updates_CD: Tensor, result: Aggregate | None = None) -> Tensor:
    """The influence, with the past that `called` gives."""
    return aggregator.influence(updates_CD, result=result, **told(aggregator, updates_CD))


def told(aggregator: Aggregator, updates_CD: Tensor) -> dict[str, Any]:
    """The keyword `past` for the rules that use it: others, also in outside packages, need not know it."""
    random = generator(2, "conformance", updates_CD.shape[1])
    trusted_D = torch.randn(updates_CD.shape[1], generator=random, dtype=torch.float64).to(updates_CD)
    return {"past": Past(trusted=lambda: trusted_D)} if aggregator.uses_past else {}


def configuration_round_trips(aggregator: Aggregator, device: str) -> None:
    """The rule is its configuration; behind pre-aggregators, what the loader makes of it."""
    if not isinstance(aggregator, Mixed):
        return _checks.configuration_round_trips(aggregator)
    values = aggregator.to_dict()
    return require(registry("aggregator").build(values) == aggregator, f"{values} builds another rule")


def enough_clients(aggregator: Aggregator) -> int:
    """A number of rows, at least 7, that the rule accepts; also with one row fewer."""
    for n_clients in range(8, 10_000):
        if not refusal(aggregator, n_clients) and not refusal(aggregator.without(1), n_clients - 1):
            return n_clients
    raise AssertionError("no number of rows up to 10,000 is accepted")


def refusal(aggregator: Aggregator, n_clients: int) -> str:
    """Why `check` refuses a number of rows, or nothing."""
    try:
        aggregator.check(n_clients)
    except ValueError as error:
        return str(error) or "no reason given"
    return ""


def some_updates(
    aggregator: Aggregator, device: str, dimension: int = 1500, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Normally distributed rows, as many as the rule needs."""
    random = generator(0, "conformance", dimension)
    return torch.randn(enough_clients(aggregator), dimension, generator=random, dtype=torch.float64).to(device, dtype)


def same(first: Aggregate, second: Aggregate) -> None:
    """Raise AssertionError unless two results agree up to rounding."""
    assert_close(first.update, second.update)
    require(bool((first.kept == second.kept).all()), f"kept {first.kept.tolist()} and {second.kept.tolist()}")
    require((first.scores is None) == (second.scores is None), "scores in one result only")
    if first.scores is not None and second.scores is not None:
        assert_close(first.scores, second.scores)


def shapes_kept(aggregator: Aggregator, device: str) -> None:
    """Shapes, dtype and device of the result."""
    for dimension in DIMENSIONS:
        for dtype in DTYPES:
            updates_CD = some_updates(aggregator, device, dimension, dtype)
            update, kept, scores = called(aggregator, updates_CD)
            require(update.shape == (dimension,), f"update has shape {list(update.shape)}, not [{dimension}]")
            require(update.dtype == dtype, f"update has dtype {update.dtype}, not {dtype}")
            require(update.device == updates_CD.device, f"update is on {update.device}, not on {updates_CD.device}")
            require(kept.shape == updates_CD.shape[:1] and kept.dtype == torch.bool, f"kept is {kept}")
            require(kept.any(), "no row was kept")
            require(update.isfinite().all(), "update is not finite")
            if scores is not None:
                require(scores.shape == kept.shape and not scores.isnan().any(), f"scores are {scores}")


def input_untouched(aggregator: Aggregator, device: str) -> None:
    """Neither the call nor a change to its result alters the input."""
    for dimension in DIMENSIONS:
        updates_CD = some_updates(aggregator, device, dimension)
        before_CD = updates_CD.clone()
        called(aggregator, updates_CD).update.zero_()
        influence_of(aggregator, updates_CD).zero_()
        require(torch.equal(updates_CD, before_CD), "the input has changed")


def deterministic(aggregator: Aggregator, device: str) -> None:
    """Two calls give the same bits, whatever the global random state."""
    updates_CD = some_updates(aggregator, device, dtype=torch.float32)
    state = torch.get_rng_state()
    first, second = called(aggregator, updates_CD), called(aggregator, updates_CD)
    require(torch.equal(state, torch.get_rng_state()), "the global random state has changed")
    require(torch.equal(first.update, second.update), "two calls gave two updates")
    require(torch.equal(first.kept, second.kept), "two calls kept different rows")


def declared(aggregator: Aggregator, flag: str, holds: Callable[[int], None]) -> None:
    """A property holds as declared, and where it is declared not to hold, it does not: the negative control."""
    if getattr(aggregator, flag):
        for dimension in DIMENSIONS:
            holds(dimension)
        return
    try:
        for dimension in DIMENSIONS:
            holds(dimension)
    except AssertionError:
        return
    raise AssertionError(f"declares {flag} = False, but it holds")


def permutation_invariant(aggregator: Aggregator, device: str) -> None:
    """The order of the rows does not matter, unless the class declares that it does."""

    def holds(dimension: int) -> None:
        updates_CD = some_updates(aggregator, device, dimension)
        order = torch.randperm(len(updates_CD), generator=generator(1, "conformance")).to(device)
        result = called(aggregator, updates_CD)
        scores = None if result.scores is None else result.scores[order]
        same(called(aggregator, updates_CD[order]), Aggregate(result.update, result.kept[order], scores))

    declared(aggregator, "permutation_invariant", holds)


def translation_equivariant(aggregator: Aggregator, device: str) -> None:
    """Moving all rows moves the result likewise, unless the class declares that it does not."""

    def holds(dimension: int) -> None:
        updates_CD = some_updates(aggregator, device, dimension)
        shift_D = 10 * updates_CD[0].flip(0)
        result = called(aggregator, updates_CD)
        same(called(aggregator, updates_CD + shift_D), result._replace(update=result.update + shift_D))

    declared(aggregator, "translation_equivariant", holds)


def homogeneous(aggregator: Aggregator, device: str) -> None:
    """Scaling all rows scales the result likewise, unless the class declares that it does not."""

    def holds(dimension: int) -> None:
        updates_CD = some_updates(aggregator, device, dimension)
        assert_close(called(aggregator, 8 * updates_CD).update, 8 * called(aggregator, updates_CD).update)

    declared(aggregator, "homogeneous", holds)


def equal_rows_returned(aggregator: Aggregator, device: str) -> None:
    """Rows that are all equal, zero included, are the result, unless the class declares that they are not."""

    def holds(dimension: int) -> None:
        for scale in (0, 1):
            updates_CD = scale * some_updates(aggregator, device, dimension)
            assert_close(called(aggregator, updates_CD[:1].expand_as(updates_CD)).update, updates_CD[0])

    declared(aggregator, "returns_equal_rows", holds)


def zero_rows_finite(aggregator: Aggregator, device: str) -> None:
    """One row of zeros, all but one, and all: nothing is divided by zero."""
    for zeros in (slice(0, 1), slice(1, None), slice(None)):
        updates_CD = some_updates(aggregator, device, dtype=torch.float32)
        updates_CD[zeros] = 0
        result = called(aggregator, updates_CD)
        require(result.update.isfinite().all(), "update is not finite")
        require(result.scores is None or not result.scores.isnan().any(), f"scores are {result.scores}")
        require(influence_of(aggregator, updates_CD).isfinite().all(), "influence is not finite")


def near_copies_told_apart(aggregator: Aggregator, device: str) -> None:
    """Rows that differ by a thousandth of their size are judged in float32 as in float64."""
    single_CD = (1e3 + some_updates(aggregator, device)).float()
    single, double = called(aggregator, single_CD), called(aggregator, single_CD.double())
    require(torch.equal(single.kept, double.kept), f"kept {single.kept.tolist()} and {double.kept.tolist()}")
    assert_close(single.update.double(), double.update, rtol=1e-6, atol=1e-2)


def too_few_rows_refused(aggregator: Aggregator, device: str) -> None:
    """A number of rows that the rule cannot handle is refused, with the numbers; a single row is returned or refused."""
    updates_CD = some_updates(aggregator, device)
    for n_clients in range(1, len(updates_CD)):
        reason = refusal(aggregator, n_clients)
        if reason:
            require(str(n_clients) in reason, f"the refusal of {n_clients} rows does not name their number: {reason}")
            try:
                called(aggregator, updates_CD[:n_clients])
            except ValueError:
                continue
            raise AssertionError(f"{n_clients} rows are refused by check() but aggregated by the call")
        require(
            aggregator.tolerated(n_clients) < n_clients / 2, f"{n_clients} rows are accepted without an honest majority"
        )
        require(
            called(aggregator, updates_CD[:n_clients]).update.isfinite().all(),
            f"{n_clients} rows give no finite result",
        )


def non_finite_rows_left_out(aggregator: Aggregator, device: str) -> None:
    """A row with NaN or Inf changes nothing for the others; nothing but such rows is an error."""
    for value in (torch.nan, torch.inf, -torch.inf):
        updates_CD = some_updates(aggregator, device)
        dropped_C = torch.arange(len(updates_CD), device=updates_CD.device) == 0
        expected = called(aggregator.dropping(dropped_C), updates_CD[1:])
        updates_CD[0, -1] = value
        result = called(aggregator, updates_CD)
        require(not result.kept[0], f"the row with {value} is reported as kept")
        scores = None if result.scores is None else result.scores[1:]
        same(Aggregate(result.update, result.kept[1:], scores), expected)
        require(float(influence_of(aggregator, updates_CD)[0]) == 0, f"the row with {value} has influence")
    try:
        called(aggregator, torch.full_like(updates_CD, torch.nan))
    except ValueError:
        return
    raise AssertionError("an input of nothing but NaN was aggregated")


def bounded_under_attack(aggregator: Aggregator, device: str) -> None:
    """The tolerated number of arbitrary rows cannot move the result far from the honest ones.

    A class that declares `robust = False` must be moved by a single row: the negative control.
    """
    honest_CD = some_updates(aggregator, device)
    n_clients, count = len(honest_CD), aggregator.tolerated(len(honest_CD)) if aggregator.robust else 1
    centre_D = honest_CD[count:].mean(0)
    spread = (honest_CD[count:] - centre_D).norm(dim=1).max()
    far_D = honest_CD[0].sign()
    moved = []
    for size in (1e3, 1e6, 1e12):
        apart_MD = size * honest_CD[:count].flip(1)
        for malicious in (far_D * size, centre_D + far_D * size, apart_MD):
            updates_CD = honest_CD.clone()
            updates_CD[:count] = malicious
            moved.append(float((called(aggregator, updates_CD).update - centre_D).norm() / spread))
    if aggregator.robust:
        require(max(moved) < 2 * n_clients, f"{count} of {n_clients} rows moved the result {max(moved):.3g} spreads")
    else:
        require(max(moved) > 2 * n_clients, "declared as not robust, but one row could not move the result")


def influence_is_a_share(aggregator: Aggregator, device: str) -> None:
    """Influence is not negative, sums to 1, and only kept rows have any."""
    for dimension in DIMENSIONS:
        updates_CD = some_updates(aggregator, device, dimension)
        result = called(aggregator, updates_CD)
        influence_C = influence_of(aggregator, updates_CD)
        require(influence_C.shape == result.kept.shape, f"influence has shape {list(influence_C.shape)}")
        require((influence_C >= 0).all(), f"influence is negative: {influence_C}")
        assert_close(float(influence_C.sum()), 1.0, rtol=0, atol=1e-5)
        require((influence_C[~result.kept] == 0).all(), f"rows that were not kept have influence: {influence_C}")
        assert_close(influence_of(aggregator, updates_CD, result), influence_C)


def weights_are_relative(aggregator: Aggregator, device: str) -> None:
    """Equal weights are no weights, only ratios count, sample counts may be integers; nonsense is refused."""
    updates_CD = some_updates(aggregator, device)
    counts_C = torch.arange(1, len(updates_CD) + 1, device=device)
    same(called(aggregator, updates_CD, torch.full_like(counts_C, 600)), called(aggregator, updates_CD))
    same(called(aggregator, updates_CD, counts_C), called(aggregator, updates_CD, counts_C * 0.25))
    for weights_C in (-counts_C, counts_C * 0, counts_C[1:], counts_C * torch.nan):
        try:
            called(aggregator, updates_CD, weights_C)
        except ValueError:
            continue
        raise AssertionError(f"weights {weights_C.tolist()} were accepted")


AGGREGATOR_CHECKS: dict[str, Callable[[Aggregator, str], None]] = {
    check.__name__: check
    for check in (
        configuration_round_trips,
        shapes_kept,
        input_untouched,
        deterministic,
        permutation_invariant,
        translation_equivariant,
        homogeneous,
        equal_rows_returned,
        zero_rows_finite,
        near_copies_told_apart,
        too_few_rows_refused,
        non_finite_rows_left_out,
        bounded_under_attack,
        influence_is_a_share,
        weights_are_relative,
    )
}
