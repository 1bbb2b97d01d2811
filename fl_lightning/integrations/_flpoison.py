"""FLPoison's YAML: one `attack` against one `defense`, whose parameters stand in the lists `attacks` and `defenses`.

Zhang, Zhou, Gao, et al., "SoK: Benchmarking Poisoning Attacks and Defenses in Federated Learning", 2025.
"""

from collections.abc import Mapping
from typing import Any

from fl_lightning.integrations._source import Source, Study, Word, labels, translated

DATA = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "CIFAR10": "cifar10"}
MODELS = {"lenet": "lenet5", "lr": "linear", "resnet18": "resnet18"}
TRIGGER = {"name": "trigger", "size": 5}
BACKDOOR = {
    "poisoning_ratio": "poison_fraction",
    "target_label": "objective.label",
    "trigger_size": "objective.size",
    "scaling_factor": "boost",
}
ATTACKS = {
    "IPM": Word({"name": "ipm", "knowledge": "full", "epsilon": 0.1}, {"scaling_factor": "epsilon"}),
    "ALIE": Word({"name": "alie", "knowledge": "full", "sign": "plus"}, {"z_max": "z"}),
    "Gaussian": Word({"name": "gaussian", "replace": True, "std": 1.0}, {"noise_mean": "mean", "noise_std": "std"}),
    "SignFlipping": Word({"name": "sign_flip"}),
    "Mimic": Word({"name": "mimic", "knowledge": "full", "target": "fixed"}),
    "MinMax": Word({"name": "min_max", "knowledge": "full"}, differs="solved in closed form here, not by halving"),
    "MinSum": Word({"name": "min_sum", "knowledge": "full"}, differs="solved in closed form here, not by halving"),
    "FangAttack": Word({"name": "fang_krum", "knowledge": "full"}, {"stop_threshold": "threshold"}),
    "BadNets": Word(
        {"name": "model_replacement", "boost": 1.0, "poison_fraction": 0.32, "objective": TRIGGER | {"label": 6}},
        BACKDOOR,
    ),
    "ModelReplacement": Word(
        {"name": "model_replacement", "boost": 50.0, "poison_fraction": 0.32, "objective": TRIGGER | {"label": 6}},
        {**BACKDOOR, "alpha": "alpha"},
    ),
    "DBA": Word(
        {
            "name": "model_replacement",
            "boost": 100.0,
            "poison_fraction": 0.32,
            "objective": {"name": "trigger", "pattern": "bars", "dba": True, "label": 6},
        },
        BACKDOOR,
        "size and place of the bars follow the image",
    ),
    "EdgeCase": Word(
        {
            "name": "model_replacement",
            "boost": 50.0,
            "poison_fraction": 0.8,
            "objective": {"name": "edge_case", "label": 1},
        },
        {**BACKDOOR, "epsilon": "radius"},
        "the tail is drawn from the data themselves",
    ),
    "Neurotoxin": Word(
        {"name": "neurotoxin", "ratio": 0.1, "poison_fraction": 0.32, "objective": TRIGGER | {"label": 6}},
        {**BACKDOOR, "topk_ratio": "ratio", "norm_threshold": "radius"},
    ),
    "AlterMin": Word(
        {"name": "alternating_minimization", "objective": {"name": "target_samples", "count": 1}},
        {
            "boosting_factor": "boost",
            "rho": "rho",
            "poisoned_sample_cnt": "objective.count",
            "target_label": "objective.label",
        },
    ),
}
RULES = {
    "Mean": Word({"name": "mean"}),
    "Krum": Word({"name": "krum"}),
    "MultiKrum": Word({"name": "multi_krum"}),
    "TrimmedMean": Word({"name": "trimmed_mean", "fraction": 0.1}, {"beta": "fraction"}),
    "Median": Word({"name": "median"}),
    "Bulyan": Word({"name": "bulyan"}),
    "RFA": Word({"name": "geometric_median", "nu": 1e-6, "max_iter": 3}, {"num_iters": "max_iter", "epsilon": "nu"}),
    "CenteredClipping": Word(
        {"name": "centered_clipping", "tau": 100.0},
        {"norm_threshold": "tau", "num_iters": "steps"},
    ),
    "DnC": Word(
        {"name": "dnc", "iterations": 5},
        {"num_iters": "iterations", "fliter_frac": "filter_share"},
        "columns are a number here",
    ),
    "LASA": Word({"name": "lasa"}, {"sparsity": "sparsity", "norm_bound": "lambda_n", "sign_bound": "lambda_s"}),
}
NEEDS_F = {"Krum", "MultiKrum", "Bulyan", "DnC"}
DEFENSES = {
    "FLTrust": Word({"name": "fltrust"}, {"num_sample": "root_samples"}),
    "SignGuard": Word(
        {"name": "signguard"}, {"lower_bound": "low", "upper_bound": "high", "selection_fraction": "coordinates"}
    ),
    "Auror": Word({"name": "auror"}, {"indicative_threshold": "threshold", "indicative_find_epoch": "calibration"}),
    "FoolsGold": Word({"name": "foolsgold"}),
    "NormClipping": Word({"name": "norm_bound", "max_norm": 3.0}, {"norm_threshold": "max_norm"}),
    "CRFL": Word({"name": "crfl"}, {"norm_threshold": "rho0", "noise_std": "sigma"}),
    "DeepSight": Word({"name": "deepsight"}, {"num_seeds": "seeds", "num_samples": "inputs", "tau": "tau"}),
    "FLAME": Word({"name": "flame"}, {"gamma": "lam"}),
    "FLDetector": Word({"name": "fldetector"}, {"window_size": "window"}),
}


def flpoison(values: Mapping[str, Any], *, every: bool = False) -> Study:
    """A configuration of FLPoison: the chosen attack and defense; if none are, or `every` is wanted, all of its lists."""
    top = Source(values)
    clients = int(top.need("num_clients"))
    share = top.get("num_adv", 0)
    malicious = int(share * clients) if 0 < share < 1 else int(share)
    base = _base(top, clients, malicious)
    attacks = _attacks(top, _chosen(top, "attack", every))
    found = [_server(top, entry, malicious, clients) for entry in _chosen(top, "defense", every)]
    servers = dict(zip(labels([name for name, _ in found]), [server for _, server in found], strict=True))
    if any("fltrust" in server.get("defenses", {}) for server in servers.values()):
        base["data"] = {"name": base["data"], "validation": 100}
    top.ignore("gpu_idx", "num_workers", "record_time", "cache_partition", "output", "log_stream", "experiment_id")
    top.ignore("attacks", "defenses")
    if top.values.get("distribution") != "class-imbalanced_iid":
        top.ignore("im_iid_gamma", "tail_cls_from")
    seed = int(top.get("seed", 0))
    top.close()
    return Study(base, attacks, servers, [seed], top.unknown)


def _base(top: Source, clients: int, malicious: int) -> dict[str, Any]:
    algorithm = top.get("algorithm", "FedAvg")
    optimizer: dict[str, Any] = {
        "name": str(top.get("optimizer", "SGD")).lower(),
        "lr": float(top.get("learning_rate", 0.01)),
    }
    if momentum := top.get("momentum"):
        if optimizer["name"] == "sgd":
            optimizer["momentum"] = momentum
        else:
            top.say("momentum")
    if decay := top.get("weight_decay"):
        optimizer["weight_decay"] = decay
    if algorithm == "FedSGD":
        client: dict[str, Any] = {"steps": 1}
        top.ignore("local_epochs")
    else:
        client = {"epochs": int(top.get("local_epochs", 1))}
    client |= {"batch_size": int(top.get("batch_size", 64)), "optimizer": optimizer}
    dataset, model = top.need("dataset"), str(top.get("model", "")).lower()
    base: dict[str, Any] = {"rounds": int(top.get("epochs", 100)), "data": DATA.get(dataset, str(dataset).lower())}
    if dataset not in DATA:
        top.say("dataset", "no such data here: set data")
    base["partition"] = _partition(top, clients)
    if model in MODELS:
        base["model"] = MODELS[model]
    else:
        top.say("model", "no such model here: ours by default")
    base |= {
        "client": client,
        "participation": {"name": "full", "malicious": malicious},
        "server": {"weights": "equal"},
    }
    if top.get("lr_scheduler"):
        top.say("lr_scheduler", "over the rounds; client.optimizer.decay acts every round")
        top.ignore("milestones")
    return base


def _partition(top: Source, clients: int) -> dict[str, Any]:
    kind, alpha = top.get("distribution", "iid"), top.get("dirichlet_alpha", 0.5)
    if kind == "non-iid":
        return {"name": "dirichlet", "clients": clients, "alpha": alpha}
    if kind != "iid":
        top.say("distribution", "read as iid")
    return {"name": "iid", "clients": clients}


def _chosen(top: Source, kind: str, every: bool) -> list[dict[str, Any]]:
    """The chosen method with its parameters; where none is chosen, all that are listed."""
    name, entries = top.get(kind), [entry for entry in top.get(f"{kind}s") or [] if isinstance(entry, Mapping)]
    own = top.get(f"{kind}_params")
    if name is None or every:
        return [dict(entry) for entry in entries]
    for entry in [{kind: name, f"{kind}_params": own}] if own else entries:
        if entry.get(kind) == name:
            return [dict(entry)]
    return [{kind: name}]


def _attacks(top: Source, entries: list[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    found: dict[str, dict[str, Any] | None] = {}
    for label, entry in zip(labels([str(entry["attack"]) for entry in entries]), entries, strict=True):
        name, parameters = entry["attack"], Source(entry.get("attack_params") or {}, f"{entry['attack']}.", top.unknown)
        if name == "NoAttack":
            found[label] = None
        elif name == "LabelFlipping":
            found[label] = _label_flipping(parameters)
        elif name in ATTACKS:
            _how(parameters)
            found[label] = translated(ATTACKS[name], parameters, name)
        else:
            top.unknown.append(f"attack: {name}")
    return found


def _how(parameters: Source) -> None:
    """Settings that all of their data poisoning shares, where they say what ours does anyway."""
    if parameters.values.get("attack_model", "all2one") == "all2one":
        parameters.ignore("attack_model", "source_label")
    if parameters.values.get("attack_strategy", "continuous") == "continuous":
        parameters.ignore("attack_strategy", "poison_frequency", "single_epoch")


def _label_flipping(parameters: Source) -> dict[str, Any]:
    source, target = parameters.get("source_label", 2), parameters.get("target_label", 7)
    _how(parameters)
    mapping: Any = {int(source): int(target)}
    if (model := parameters.get("attack_model", "targeted")) != "targeted":
        mapping = {"all2all": "shift", "inverse": "static"}.get(model, "shift")
        parameters.say("attack_model", f"read as {mapping}")
    parameters.close()
    return {"name": "label_flip", "objective": {"name": "label_map", "mapping": mapping}}


def _server(top: Source, entry: dict[str, Any], malicious: int, clients: int) -> tuple[str, dict[str, Any]]:
    name, parameters = entry["defense"], Source(entry.get("defense_params") or {}, f"{entry['defense']}.", top.unknown)
    parameters.ignore("enable_check", "random_seed")
    if name == "Bucketing":
        inner = str(parameters.get("selected_aggregator", "Krum"))
        _, server = _server(top, {"defense": inner}, malicious, clients)
        step = {"name": "bucketing", "s": int(parameters.get("bucket_size", 2))}
        return f"{name}, {inner}", {"aggregator": {**server.get("aggregator", {"name": "mean"}), "pre": [step]}}
    if name == "MultiKrum":
        kept = max(1, int(parameters.get("avg_percentage", 0.2) * clients))
        return name, {"aggregator": {"name": "multi_krum", "n_byzantine": malicious, "m": kept}}
    if name in RULES:
        rule = translated(RULES[name], parameters, name)
        return name, {"aggregator": {**rule, **({"n_byzantine": malicious} if name in NEEDS_F else {})}}
    if name in DEFENSES:
        if name == "NormClipping":
            noisy = parameters.get("weakDP", False)
            std = parameters.get("noise_std", 0.002)
            made = translated(DEFENSES[name], parameters, name)
            return name, {"defenses": {"norm_bound": made | ({"noise_std": std} if noisy else {})}}
        if name == "SignGuard":
            parameters.ignore("clustering")
        made = translated(DEFENSES[name], parameters, name)
        return name, {"defenses": {made["name"]: made}}
    top.unknown.append(f"defense: {name} (read as the mean)")
    return name, {"aggregator": {"name": "mean"}}
