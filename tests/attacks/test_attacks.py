"""What every attack promises: the conformance suite, that it finds what it looks for, and the threat model."""

import re
import sys
from typing import ClassVar

import pytest
import torch

from fl_lightning.attacks import Attack, Gaussian, KnowledgeError, Poisoned, SignFlip
from fl_lightning.errors import ConfigError
from fl_lightning.registry import named_config, registry
from fl_lightning.testing.attacks import ATTACK_CHECKS, check_attack, check_honest_at_zero, play

# Every registered attack takes its cases from here.
CANONICAL: dict[str, list[dict]] = {
    "label_flip": [
        {},
        {"boost": 3.0},
        {"flip": "per_client"},
        {"flip": "symmetric", "share": 0.5},
        {"flip": "dynamic"},
        {"objective": {"name": "trigger", "mode": "one_to_one", "source": 3}, "share": 0.7},
    ],
    "gaussian": [{}, {"std": 0.1}, {"std": 0.1, "mean": 0.2, "replace": True}],
    "model_replacement": [{}, {"alpha": 0.5, "max_norm": 1.0}, {"rehearsal": 2, "start": "foreseen"}],
    "sign_flip": [{}, {"of": "mean", "knowledge": "full"}],
    "alie": [{}, {"knowledge": "full", "z": 1.5}, {"sign": "plus", "flip_half": True, "spread": 0.1}],
    "ipm": [{"knowledge": "full"}, {"knowledge": "none", "epsilon": 5.0}],
    "fang_krum": [{}, {"knowledge": "full", "search": "bisection"}, {"knowledge": "full", "rule": "random"}],
    "fang_trimmed_mean": [{}, {"knowledge": "full"}, {"knowledge": "none", "rule": "random"}],
    "fang_median": [{"knowledge": "partial", "visible_updates": 2}, {"knowledge": "full"}],
    "cmp": [{}, {"knowledge": "partial"}, {"knowledge": "full"}],
    "alternating_minimization": [
        {"alpha": 0.3, "rho": 0.1, "null_space": 0.01},
        {"form": "alternate", "rho": 0.1, "objective": {"name": "trigger"}, "poison_samples": 5},
    ],
    "deep": [
        {"curvature_samples": 4},
        {"form": "printed", "curvature_samples": 4},
        {"h": "hutchinson", "objective": {"name": "target_samples"}},
        {"curvature_samples": 4, "rehearsal": 2, "knowledge": "partial", "visible_updates": 2, "start": "foreseen"},
    ],
    "multi_party": [
        {},
        {"knowledge": "partial", "visible_updates": 2, "gamma": 0.1},
        {"knowledge": "full", "objective": {"name": "label_map", "mapping": {5: 7}}},
        {"knowledge": "none", "distance": None, "objective": "trigger"},
    ],
    "pga": [{}, {"average": False, "radius": 0.5, "objective": {"name": "label_map", "mapping": {5: 7}}}],
    "neurotoxin": [
        {"objective": {"name": "trigger", "pattern": "bars", "dba": True}},
        {"ratio": 0.2, "mask_from": "own_gradient", "per_layer": True, "radius": 0.3, "boost": 2.0},
    ],
    "critical_layers": [{"epochs": 30, "lr_factor": 10.0, "poison_fraction": 0.5, "every": 2}],
    "a3fl": [
        {"outer": 2, "adversarial_epochs": 1},
        {"outer": 3, "refresh": 2, "shared": True, "stop": 0.5, "boost": None},
    ],
    "iba": [{"generator_epochs": 2, "generator_lr": 0.01, "radius": 0.5}],
    "chameleon": [{"contrastive_epochs": 2}, {"contrastive_epochs": 2, "radius": 0.2, "boost": 2.0}],
    "three_dfed": [
        {},
        {"radius": 0.3, "boost": 2.0, "neurons": 9, "objective": {"name": "trigger", "mode": "all_to_all"}},
    ],
    "min_max": [{"knowledge": "full"}, {"perturbation": "std", "flip_half": True, "spread": 0.1}],
    "min_sum": [{"knowledge": "full"}, {"perturbation": "sign", "bound": "min", "gamma": 2.0}],
    "agr_tailored": [
        {"knowledge": "full"},
        {"visible_updates": 2, "perturbation": "std", "aim": "distance", "trials": 30},
    ],
    "optimal_alie": [{"knowledge": "full", "trials": 20}, {"visible_updates": 2, "trials": 20, "aim": "backward"}],
    "optimal_ipm": [{"knowledge": "full", "trials": 15, "aim": "loss"}],
    "mimic": [
        {"knowledge": "full", "warmup": 1},
        {"knowledge": "partial", "visible_updates": 2},
        {"target": "farthest", "knowledge": "full"},
    ],
    "poisonedfl": [{}, {"check_every": 1, "spread": 0.1}],
    "mpaf": [{}, {"base": "initial"}, {"base": "zero", "scale": 1e6}],
    "rop": [{"knowledge": "full"}, {"direction": "random", "pi": 0.0}],
    "hidra": [{"knowledge": "full"}, {"visible_updates": 2}],
    "hybrid_sparse": [{"knowledge": "full"}, {"z_small": "alie", "sign": "none"}],
    "free_rider": [{}, {"kind": "replay"}],
    "fault": [{"kind": "nan"}, {"kind": "huge"}, {"kind": "bit_flip"}],
    "shuffle": [{"knowledge": "full"}],
    "chain": [{}],
    "byzfl": [
        {"knowledge": "full"},
        {"rule": "Inf"},
        {"rule": "Optimal_InnerProductManipulation", "options": {"evals": 5}, "against": "median"},
    ],
}
CASES = [
    registry("attack").build({"name": name, **case})
    for name, cases in CANONICAL.items()
    if name in registry("attack").names()
    for case in cases
]


def ident(case: Attack) -> str:
    return f"{case.name}-{case.knowledge}"


# --- conformance -------------------------------------------------------------------------------------------------------


def test_every_registered_attack_has_a_canonical_case():
    assert set(registry("attack").names()) <= set(CANONICAL)


FIRST = [next(case for case in CASES if case.name == name) for name in CANONICAL if name in registry("attack").names()]
"""One case of each attack: under every aggregator a case takes seconds."""


@pytest.mark.parametrize("case", CASES, ids=ident)
@pytest.mark.parametrize("check", [name for name in ATTACK_CHECKS if name != "survives_every_aggregator"])
def test_conformance(check, case):
    ATTACK_CHECKS[check](case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ident)
def test_every_case_survives_every_aggregator(case):
    ATTACK_CHECKS["survives_every_aggregator"](case)


@pytest.mark.parametrize("case", FIRST[::4], ids=ident)
def test_some_attacks_survive_every_aggregator_every_day(case):
    ATTACK_CHECKS["survives_every_aggregator"](case)


@pytest.mark.parametrize("case", [Gaussian(std=0.0)], ids=ident)
def test_honest_at_strength_zero(case):
    check_honest_at_zero(case)


def test_strength_zero_can_fail():
    with pytest.raises(AssertionError, match="differs from honest training"):
        check_honest_at_zero(SignFlip(scale=0.5))


@pytest.mark.parametrize("name", registry("attack").names())
def test_every_attack_has_a_configuration_that_builds(name):
    assert named_config("attack", name)["name"] == name
    assert registry("attack").build(name).name == name


# --- the conformance suite finds what it looks for ---------------------------------------------------------------------


class Idle(Attack):
    name: ClassVar[str] = "idle"

    def poison(self, view, state):
        return Poisoned(view.own_updates)


class Spy(Attack):
    """Reads the server's rows behind the threat model's back: no view leads to them, but the caller's frame does."""

    name: ClassVar[str] = "spy"

    def poison(self, view, state):
        honest_CD = sys._getframe(1).f_locals["trained"].updates_CD
        return Poisoned(-honest_CD.mean(0).repeat(view.n_malicious, 1))


class Greedy(Attack):
    """Asks for more than it declares."""

    name: ClassVar[str] = "greedy"

    def poison(self, view, state):
        return Poisoned(-view.benign_updates.mean(0).repeat(view.n_malicious, 1))


class InPlace(Attack):
    name: ClassVar[str] = "in_place"

    def poison(self, view, state):
        sys._getframe(1).f_locals["trained"].updates_CD.mul_(2)
        return Poisoned(-view.own_updates)


class GlobalRandom(Attack):
    name: ClassVar[str] = "global_random"

    def poison(self, view, state):
        return Poisoned(torch.randn_like(view.own_updates))


class Forgetful(Attack):
    """Keeps its memory outside of its state."""

    name: ClassVar[str] = "forgetful"
    calls: ClassVar[list[int]] = []

    def poison(self, view, state):
        self.calls.append(1)
        return Poisoned(-len(self.calls) * view.own_updates)


class Lambda(Attack):
    """Keeps something in its state that a checkpoint cannot hold."""

    name: ClassVar[str] = "lambda"

    def poison(self, view, state):
        return Poisoned(-view.own_updates, {"f": ident})


class Lonely(Attack):
    """Divides by the number of the other attackers."""

    name: ClassVar[str] = "lonely"

    def poison(self, view, state):
        return Poisoned(-view.own_updates / (view.n_malicious - 1))


class Wordy(Attack):
    name: ClassVar[str] = "wordy"

    def poison(self, view, state):
        return Poisoned(-view.own_updates, metrics={"norm": view.own_updates.norm()})


class KrumOnly(Attack):
    name: ClassVar[str] = "krum_only"
    needs: ClassVar[str] = "partial"
    knowledge: str = "partial"

    def poison(self, view, state):
        return Poisoned(-view.own_updates * (1 + view.aggregator.squared))


@pytest.mark.parametrize(
    ("attack", "check", "error", "reason"),
    [
        (Idle(), "only_malicious_rows_change", AssertionError, "no malicious row has changed"),
        (InPlace(), "only_malicious_rows_change", AssertionError, "modified in place"),
        (Spy(), "knows_no_more_than_granted", AssertionError, "must not know"),
        (Greedy(knowledge="full"), "declared_knowledge_suffices", KnowledgeError, "needs full knowledge"),
        (GlobalRandom(), "deterministic", AssertionError, "global random state"),
        (Forgetful(), "deterministic", AssertionError, "different updates"),
        (Lambda(), "resumes_exactly", Exception, "[Ww]eights.only|pickle"),
        (Lonely(), "any_number_of_attackers", AssertionError, "1 malicious clients send NaN or Inf"),
        (Wordy(), "metrics_are_numbers", AssertionError, "not a finite float"),
        (KrumOnly(), "survives_every_aggregator", AttributeError, "squared"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_suite_finds_faults(attack, check, error, reason):
    with pytest.raises(error, match=reason):
        ATTACK_CHECKS[check](attack)


def test_the_suite_names_attack_and_check():
    with pytest.raises(AssertionError, match=r"Idle.*fails the check only_malicious_rows_change"):
        check_attack(Idle())


# --- the threat model --------------------------------------------------------------------------------------------------

PARTIAL = ("aggregator", "visible_updates")
FULL = ("benign_updates", "benign_weights", "benign_samples", "defenses")


class Curious(Attack):
    """Collects what the view refuses."""

    name: ClassVar[str] = "curious"
    refused: ClassVar[dict[str, str]] = {}

    def poison(self, view, state):
        self.refused.clear()
        for what in (*PARTIAL, *FULL):
            try:
                getattr(view, what)
            except KnowledgeError as error:
                self.refused[what] = str(error)
        visible = 0 if view.knowledge == "none" else len(view.visible_updates)
        return Poisoned(-view.own_updates, metrics={"known": float(len(view.known_updates)), "visible": float(visible)})


@pytest.mark.parametrize(
    ("granted", "refused", "known"),
    [("none", {*PARTIAL, *FULL}, 3), ("partial", {*FULL}, 5), ("full", set(), 8)],
)
def test_the_view_refuses_what_was_not_granted(granted, refused, known):
    attack = Curious(knowledge=granted, visible_updates=2 if granted == "partial" else 0)
    played = play(attack)
    assert set(Curious.refused) == refused
    assert all(re.search(rf"needs (partial|full) knowledge.*'{granted}'", text) for text in Curious.refused.values())
    assert played.metrics["attack/known"] == known


def test_less_knowledge_than_needed_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="visible_updates belongs to partial knowledge, got knowledge 'full'"):
        registry("attack").build({"name": "alie", "knowledge": "full", "visible_updates": 3})
    with pytest.raises(ConfigError, match="serves any, relabel, got objective 'trigger' of kind 'backdoor'"):
        registry("attack").build({"name": "ipm", "objective": "trigger"})
