"""Every figure that a run reports, in words: the one place where metric names are listed.

A name with a part in angle brackets stands for all names of that form.
"""

import math
import re

__all__ = ["GLOSSARY", "bounds", "meaning"]

GLOSSARY: dict[str, str] = {
    "global/accuracy": "share of clean test samples that the global model classifies rightly",
    "global/loss": "mean loss of the global model on clean test samples",
    "global/normalized_cost": "regression: mean squared error divided by the variance of the test targets",
    "global/<figure>": "a figure that `evaluation.metrics` asks for",
    "owner/worst": "accuracy of the global model on the test samples of the owner for whom it is worst",
    "owner/mean": "accuracy on the test samples of an owner, mean over the owners",
    "owner/accuracy/<owner>": "accuracy on the test samples of one owner",
    "attack/success": "share of the objective's success samples that the global model predicts as the attacker wishes; "
    "the error rate for an untargeted attack",
    "attack/confidence": "mean probability of the wished label on the success samples",
    "attack/success_part_<n>": "the same with one part alone of a trigger that attackers share out",
    "attack/selected": "the attackers' share of what the server used, by the weights that it used",
    "attack/active": "1 in rounds in which malicious clients attacked",
    "attack/idle": "1 in rounds in which the attack was due and changed nothing",
    "attack/attacking_rate": "share of the attacked rounds in which the server used a malicious row (CMP, section 5)",
    "attack/persistence": "rounds from the last attacked one until success first falls below a half (FL-WBC, section 7.1)",
    "attack/persistence_benign_error": "the same until it first falls below the error on the clean task, as FL-WBC defines it "
    "for several images",
    "attack/persists_benign_error": "1 if it never does, and the above is a lower bound",
    "attack/persistence_for_good": "the same until it falls below and stays there",
    "attack/persists": "1 where success did not stay below a half while the run was watched: the two above are lower bounds then",
    "attack/<figure>": "a figure of the attack's own; its docstring says which",
    "defense/false_alarm_rate": "share of the benign rows that the defenses removed, all together",
    "defense/missed_alarm_rate": "share of the malicious rows that no defense removed",
    "defense/<label>/false_alarm_rate": "share of the benign rows that this defense removed",
    "defense/<label>/missed_alarm_rate": "share of the malicious rows that it let through",
    "defense/<label>/flagged_false_alarm_rate": "share of the benign rows that it flagged, even where all of them stay",
    "defense/<label>/flagged_missed_alarm_rate": "share of the malicious rows that it did not flag",
    "defense/<label>/flagged_all": "1 in rounds in which it flagged every row; `server.all_flagged` says what happens then",
    "defense/<label>/idle": "1 in rounds in which it flagged every row and let all of them stay: it decided nothing",
    "defense/<label>/<figure>": "a figure of the defense's own; its docstring says which",
    "stealth/cosine": "mean cosine between a malicious update and the sum of all other updates",
    "stealth/l2_max": "largest distance between a malicious and a benign update",
    "stealth/norm_ratio": "largest norm of a malicious update over the median norm of the benign ones",
    "stealth/spread": "how far malicious updates lie from the first of them, over the median norm of the benign ones",
    "stealth/opposition": "minus the cosine between the means of malicious and benign updates: 1 is straight against them",
    "stealth/distribution": "Kolmogorov-Smirnov distance between the values of a malicious update and those of the benign ones",
    "stealth/distribution_layer<n>": "the same of the n-th layer with parameters, from 0 (`evaluation.layers`)",
    "stealth/accuracy_gap": "accuracy after the mean of the benign updates minus that after the worst malicious one",
    "impact/accuracy_drop": "accuracy of the attack-free twin minus that of the attacked model, paired by round",
    "impact/loss_drop": "the same for the loss",
    "impact/aep": "attack effect on parameters, the distance between the two global models (FL-WBC, eq. 6)",
    "impact/aep_predicted": "its first-order prediction from the round before",
    "impact/aep_cosine": "cosine between the predicted and the exact effect",
    "impact/null_space": "norm of Hessian times effect: how far the loss is from flat along it (FL-WBC, eq. 13)",
    "impact/null_space_random": "the same for a random direction of the same norm, for comparison",
    "client/<label>/<figure>": "what a client callback reports, averaged over the fits",
    "server/non_finite": "rows with NaN or Inf that the server dropped",
    "server/skipped": "1 in rounds in which nothing was left to aggregate and the model stayed where it was",
    "server/too_few": "1 in rounds that were skipped because the defenses left fewer rows than the rule can handle",
    "server/seconds": "seconds a round that defenses and rule take, where `evaluation.worst` asks what they are worth",
    "worst/success": "the largest success, an error rate for untargeted attacks, among the attacks of `evaluation.worst`",
    "worst/accuracy": "the lowest accuracy under any of them",
    "worst/<attack>": "the largest success of one of them alone",
    "server/refused": "1 in rounds that were skipped because the rule's search would have taken too long",
    "aggregator/<figure>": "a figure of the rule's own: `flipped` (rlr), `copied_malicious` (foundation)",
    "time/<part>": "seconds spent in a part of the round",
    "certified/accuracy": "share of test samples that provably stay classified rightly; FLCert: the step is the number of "
    "malicious clients; CRFL: at radius 0, larger ones are in certificate.csv",
    "sweep/<figure>": "what a search came to, on its parent run",
    "best/<group>/<figure>": "the best figure of any trial so far, on the parent run of a search; the step is the trial",
    "system/<figure>": "load of the machine (`tracking.system=true`), by MLflow's monitor",
}


def meaning(metric: str) -> str | None:
    """What a metric says, or None for a name that no run reports.

    Example:
        >>> meaning("global/accuracy")
        'share of clean test samples that the global model classifies rightly'
        >>> meaning("defense/clip/false_alarm_rate")
        'share of the benign rows that this defense removed'
        >>> meaning("globl/accuracy") is None
        True
    """
    if metric in GLOSSARY:
        return GLOSSARY[metric]
    for pattern, words in GLOSSARY.items():
        if "<" in pattern and re.fullmatch(re.sub(r"<\w+>", r"[^/]+", pattern), metric):
            return words
    return None


SHARE = re.compile(
    r".*(owner/|accuracy|success|confidence|selected|_rate|persists|active|idle|skipped|distribution(_layer\d+)?|flagged_all|too_few|refused|flipped"
    r"|copied_malicious)"
)
COSINE = re.compile(r".*(cosine|opposition|accuracy_drop|accuracy_gap)")


def bounds(metric: str) -> tuple[float, float]:
    """What a metric cannot leave: (0, 1) for shares, (-1, 1) for cosines and differences of shares.

    Example:
        >>> bounds("attack/success"), bounds("stealth/cosine"), bounds("global/loss")
        ((0.0, 1.0), (-1.0, 1.0), (-inf, inf))
    """
    if COSINE.fullmatch(metric):
        return -1.0, 1.0
    return (0.0, 1.0) if SHARE.fullmatch(metric) else (-math.inf, math.inf)
