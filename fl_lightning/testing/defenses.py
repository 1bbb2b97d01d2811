"""What every defense must do.

A package that brings its own defense checks it with one line, or one test a check:

    check_defense(MyDetector())
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad

from fl_lightning.aggregators import Aggregator, Krum, Layer, Layout, Mean, Median, TrimmedMean
from fl_lightning.data import Samples
from fl_lightning.defenses import Defense, ServerContext, State, Verdict, applied
from fl_lightning.errors import ConfigError
from fl_lightning.models import cross_entropy
from fl_lightning.randomness import generator
from fl_lightning.testing._checks import configuration_round_trips, require, run_all

CLIENTS, INPUTS, CLASSES = 11, 40, 10
DIMENSION = INPUTS * CLASSES
RULES: tuple[Aggregator, ...] = (Mean(), Krum(n_byzantine=3), TrimmedMean(n_byzantine=3), Median())


def check_defense(defense: Defense) -> None:
    """Run every check of `DEFENSE_CHECKS` under each rule that the defense can work for.

    Raises:
        AssertionError: naming the defense, the check that failed, and why.

    Example:
        >>> from fl_lightning.defenses import NormBound
        >>> check_defense(NormBound(max_norm=1.0))
    """
    run_all(DEFENSE_CHECKS, repr(defense), defense)


def rules(defense: Defense) -> list[Aggregator]:
    """The rules that the defense accepts; at least one."""
    accepted = []
    for rule in RULES:
        try:
            defense.check(rule, validation=True)
        except ConfigError:
            continue
        accepted.append(rule)
    require(accepted, "no aggregator is accepted")
    return accepted


def server(aggregator: Aggregator, n_clients: int = CLIENTS, round: int = 0) -> ServerContext:
    """A server with a linear classifier and validation samples, from which it makes the update that the honest clients share."""
    random = generator(0, "conformance")
    inputs = torch.randn(64, INPUTS, generator=random)
    samples = Samples(inputs, torch.randint(CLASSES, (64,), generator=random))

    def predict(theta_D: Tensor, x: Tensor) -> Tensor:
        return x @ theta_D.view(CLASSES, INPUTS).T

    def losses(theta_D: Tensor, samples: Samples) -> Tensor:
        return cross_entropy(predict(theta_D, samples.x), samples.y)

    return ServerContext(
        round=round,
        global_D=0.1 * torch.randn(DIMENSION, generator=random),
        previous_D=torch.zeros(DIMENSION),
        aggregator=aggregator,
        weights_C=torch.full((n_clients,), 600.0),
        validation=samples,
        predict=predict,
        losses=losses,
        gradient=lambda theta_D, samples: grad(lambda theta_D: losses(theta_D, samples).mean())(theta_D),
        generator=lambda purpose: generator(0, purpose, round),
        clients_C=torch.arange(n_clients),
        population=n_clients,
        layout=Layout((Layer("linear.weight", slice(0, DIMENSION), (CLASSES, INPUTS)),), "a linear model", "linear"),
        train=lambda samples, purpose, steps=None: common(),
        features=lambda theta_D, x: x,
        rounds=100,
    )


def common() -> Tensor:
    """`[D]` what the honest updates have in common."""
    return 0.1 * torch.randn(DIMENSION, generator=generator(1, "conformance"))


def honest(n_clients: int = CLIENTS) -> Tensor:
    """`[n, D]` updates that agree on average."""
    random = generator(1, "conformance")
    common_D = torch.randn(DIMENSION, generator=random)
    return 0.1 * (common_D + torch.randn(n_clients, DIMENSION, generator=random))


def shapes_kept(defense: Defense) -> None:
    """Shapes, dtypes and finiteness of the verdict, for several numbers of clients down to one."""
    for rule in rules(defense):
        for n_clients in (CLIENTS, 5, 1):
            try:
                rule.check(n_clients)
            except ValueError:
                continue
            updates_CD, context = honest(n_clients), server(rule, n_clients)
            verdict = defense.apply(updates_CD, context, defense.init())
            require(verdict.keep_C.shape == (n_clients,), f"keep_C has shape {list(verdict.keep_C.shape)}")
            require(verdict.keep_C.dtype == torch.bool, f"keep_C has dtype {verdict.keep_C.dtype}")
            after_CD = applied(verdict, updates_CD)
            require(after_CD.shape == updates_CD.shape, "the shape of the updates has changed")
            require(after_CD.dtype == updates_CD.dtype, "the dtype of the updates has changed")
            require(after_CD.isfinite().all(), "the updates are not finite")
            require(verdict.weights_C.shape == (n_clients,), f"weights_C has shape {list(verdict.weights_C.shape)}")
            if verdict.scores_C is not None:
                require(verdict.scores_C.shape == (n_clients,), f"scores_C has shape {list(verdict.scores_C.shape)}")
                require(not verdict.scores_C.isnan().any(), "scores_C holds NaN")


def input_untouched(defense: Defense) -> None:
    """Neither updates nor weights are modified in place."""
    for rule in rules(defense):
        updates_CD, context = honest(), server(rule)
        before_CD, weights_C = updates_CD.clone(), context.weights_C.clone()
        defense.apply(updates_CD, context, defense.init())
        require(torch.equal(updates_CD, before_CD), "the updates have changed")
        require(torch.equal(context.weights_C, weights_C), "the weights have changed")


def deterministic(defense: Defense) -> None:
    """Two calls give the same verdict and leave the global random state alone."""
    for rule in rules(defense):
        state = torch.get_rng_state()
        first, second = (defense.apply(honest(), server(rule), defense.init()) for _ in range(2))
        require(torch.equal(state, torch.get_rng_state()), "the global random state has changed")
        require(torch.equal(first.keep_C, second.keep_C), "two calls kept different rows")
        after = [applied(verdict, honest()) for verdict in (first, second)]
        require(torch.equal(*after), "two calls gave different updates")


def somebody_stays(defense: Defense) -> None:
    """Identical, zero, opposite, huge and nearly identical rows: never NaN, and somebody stays where `on_empty` says so.

    A defense that may skip a round keeps somebody of honest rows nevertheless.
    """
    one_D = honest()[0]
    alternating = torch.where(torch.arange(CLIENTS) % 2 == 0, 1.0, -1.0)[:, None]
    with_zero_CD = honest()
    with_zero_CD[3] = 0
    for rule in rules(defense):
        for rows_CD in (
            honest(),
            with_zero_CD,
            one_D.expand(CLIENTS, -1).clone(),
            torch.zeros(CLIENTS, DIMENSION),
            alternating * one_D,
            1e15 * honest(),
            one_D + 1e-6 * honest(),
        ):
            verdict: Verdict = defense.apply(rows_CD, server(rule), defense.init())
            may_skip = defense.on_empty == "skip" and not torch.equal(rows_CD, honest())
            require(may_skip or verdict.keep_C.any(), "everybody was thrown away")
            require(applied(verdict, rows_CD).isfinite().all(), "the updates are not finite")
            require(verdict.scores_C is None or not verdict.scores_C.isnan().any(), "scores_C holds NaN")
            kept = verdict.weights_C[verdict.keep_C]
            require(not len(kept) or kept.sum() > 0, "all that stay have the weight 0")


def rounds_of(defense: Defense, n_rounds: int) -> Iterator[tuple[Tensor, ServerContext, State]]:
    """Rounds in which six of nine clients take part, in changing order: their rows, the context and the state before."""
    random, state, rule = generator(2, "conformance"), defense.init(), rules(defense)[0]
    for round in range(n_rounds):
        clients_C = torch.randperm(9, generator=random)[:6]
        rows_CD = honest(6) + 0.05 * torch.randn(6, DIMENSION, generator=random)
        context = replace(server(rule, 6, round), clients_C=clients_C, population=9)
        context = replace(context, global_D=context.global_D + 0.1 * torch.randn(DIMENSION, generator=random))
        yield rows_CD, context, state
        state = dict(defense.apply(rows_CD, context, state).state)
        state = dict(defense.after_step(context.global_D + rows_CD.mean(0), context, state)[1])


def same(first: Verdict, second: Verdict) -> bool:
    """Whether two verdicts keep, weigh and scale alike."""
    scales = [torch.ones(1) if verdict.scale_C is None else verdict.scale_C for verdict in (first, second)]
    pairs = ((first.keep_C, second.keep_C), (first.weights_C, second.weights_C), scales)
    return all(torch.equal(*pair) for pair in pairs)


def state_is_explicit(defense: Defense) -> None:
    """The same state gives the same verdict again, is left as it was, and survives being saved between any two rounds."""
    for rows_CD, context, state in rounds_of(defense, 5):
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        buffer.seek(0)
        restored = torch.load(buffer, weights_only=True)
        verdict = defense.apply(rows_CD, context, state)
        require(same(verdict, defense.apply(rows_CD, context, state)), "the same state gave another verdict")
        require(same(verdict, defense.apply(rows_CD, context, restored)), "a saved state gave another verdict")


def memory_of_the_absent(defense: Defense) -> None:
    """What is remembered of the clients, tensors `[N, ...]` in the state, does not change for those who are away."""
    for rows_CD, context, state in rounds_of(defense, 4):
        after = defense.apply(rows_CD, context, state).state
        away_N = torch.ones(9, dtype=torch.bool)
        away_N[context.clients_C] = False
        for name in set(state) & set(after):
            before, now = state[name], after[name]
            if isinstance(now, Tensor) and now.ndim and len(now) == 9 and before.shape == now.shape:
                require(torch.equal(before[away_N], now[away_N]), f"state {name!r} of the absent has changed")


def positions_do_not_matter(defense: Defense) -> None:
    """The verdict about a row does not depend on the place in which it is sent."""
    rule, order = rules(defense)[0], torch.randperm(CLIENTS, generator=generator(3, "conformance"))
    context, rows_CD = server(rule), honest()
    rows_CD[2] *= -1.5  # somebody to judge
    first = defense.apply(rows_CD, context, defense.init())
    second = defense.apply(rows_CD[order], replace(context, clients_C=order), defense.init())
    require(torch.equal(first.keep_C[order], second.keep_C), "other rows stay when they are sent in another order")


def near_copies_told_apart(defense: Defense) -> None:
    """Rows of 1000 plus unit noise in float32 get the verdict of the same numbers in float64."""
    rule, rows_CD = rules(defense)[0], (1e3 + 10 * honest()).float()
    context = server(rule)
    double = replace(
        context,
        global_D=context.global_D.double(),
        previous_D=context.previous_D.double(),
        validation=context.validation and Samples(context.validation.x.double(), context.validation.y),
    )
    first = defense.apply(rows_CD, context, defense.init())
    second = defense.apply(rows_CD.double(), double, defense.init())
    require(torch.equal(first.keep_C, second.keep_C), "float32 and float64 keep different rows")


def missing_validation_taught(defense: Defense) -> None:
    """Without validation samples the defense works, or both `check` and `apply` say what to set."""
    rule = rules(defense)[0]
    try:
        defense.check(rule, validation=False)
    except ConfigError as error:
        require("data.validation" in str(error), f"the refusal does not name data.validation: {error}")
        try:
            defense.apply(honest(), replace(server(rule), validation=None), defense.init())
        except ConfigError:
            return
        raise AssertionError("check() refuses a server without samples but apply() works") from None
    defense.apply(honest(), replace(server(rule), validation=None), defense.init())


DEFENSE_CHECKS: dict[str, Callable[[Defense], None]] = {
    check.__name__: check
    for check in (
        configuration_round_trips,
        shapes_kept,
        input_untouched,
        deterministic,
        somebody_stays,
        missing_validation_taught,
        state_is_explicit,
        memory_of_the_absent,
    )
}
"""Every check by name."""

FILTER_CHECKS: dict[str, Callable[[Defense], None]] = {
    check.__name__: check for check in (positions_do_not_matter, near_copies_told_apart)
}
"""Further checks of a defense that only measures rows: it trains nothing on them and breaks no ties at random."""
