"""BackFed's configuration: one aggregator, and a backdoor as a pair of data and model poisoning.

Dao, Nguyen, Wong et al., "BackFed: An Efficient & Standardized Benchmark Suite for Backdoor Attacks in Federated Learning", 2025.
"""

from collections.abc import Mapping
from typing import Any

from fl_lightning.integrations._source import Source, Study, Word, translated

DATA = {"MNIST": "mnist", "CIFAR10": "cifar10", "FEMNIST": "femnist", "FashionMNIST": "fashion_mnist"}
MODELS = {"ResNet18": "resnet18", "LeNet": "lenet5"}
EQUAL = {"name": "mean"}
RULES = {
    "weighted_fedavg": Word(EQUAL),
    "unweighted_fedavg": Word(EQUAL),
    "fedavg": Word(EQUAL),
    "coordinate_median": Word({"name": "median"}),
    "geometric_median": Word({"name": "geometric_median"}),
    "trimmed_mean": Word({"name": "trimmed_mean", "fraction": 0.2}, {"trim_ratio": "fraction", "beta": "fraction"}),
    "robustlr": Word({"name": "rlr", "theta": 4}, {"robustLR_threshold": "theta"}),
    "krum": Word({"name": "krum", "n_byzantine": "auto"}),
    "multi_krum": Word(
        {"name": "multi_krum", "n_byzantine": "auto"},
        {"num_malicious_clients": "n_byzantine", "num_clients_to_keep": "m"},
    ),
    "bulyan": Word({"name": "bulyan", "n_byzantine": 2}, {"num_malicious_clients": "n_byzantine"}),
}
DEFENSES = {
    "norm_clipping": Word({"name": "norm_bound", "max_norm": 5.0}, {"clipping_norm": "max_norm"}),
    "weakdp": Word({"name": "norm_bound", "max_norm": 5.0}, {"clipping_norm": "max_norm", "std_dev": "noise_std"}),
    "localdp": Word({"name": "ldp", "max_norm": 5.0}, {"clipping_norm": "max_norm", "std_dev": "std"}),
    "foolsgold": Word({"name": "foolsgold"}, {"confidence": "kappa"}),
    "deepsight": Word({"name": "deepsight"}, {"num_seeds": "seeds", "num_samples": "inputs", "deepsight_tau": "tau"}),
    "alignins": Word({"name": "alignins"}, {"sparsity": "top", "lambda_s": "lambda_s", "lambda_c": "lambda_c"}),
    "multi_metrics": Word({"name": "multi_metrics"}, {"selection_ratio": "keep_share"}),
    "flame": Word({"name": "flame"}, {"lamda": "lam"}),
    "rflbat": Word({"name": "rflbat"}, {"eps1": "eps1", "eps2": "eps2"}),
    "fldetector": Word({"name": "fldetector"}, {"window_size": "window"}),
    "fltrust": Word({"name": "fltrust"}, {"m": "root_samples"}),
    "flare": Word({"name": "flare"}, {"aux_class": "label", "m": "samples_per_class"}),
    "indicator": Word({"name": "backdoor_indicator"}),
}
NEEDS_SAMPLES = {"fltrust", "flare", "indicator"}
TRIGGERS: dict[str, tuple[dict[str, Any], str]] = {
    "pattern": ({"name": "trigger"}, "its pattern is ours by default"),
    "pixel": ({"name": "trigger", "size": 1}, ""),
    "badnets": ({"name": "trigger", "pattern": "checker"}, ""),
    "blended": ({"name": "trigger", "pattern": "blend"}, "the blended picture is ours by default"),
    "distributed": ({"name": "trigger", "pattern": "bars", "dba": True}, ""),
    "centralized": ({"name": "trigger", "pattern": "bars"}, ""),
    "edge_case": ({"name": "edge_case"}, "the tail is drawn from the data themselves"),
    "a3fl": ({"name": "trigger"}, ""),
    "iba": ({"name": "trigger"}, ""),
}
MODES = {"all2one": "all_to_one", "all2all": "all_to_all", "one2one": "one_to_one"}


def backfed(values: Mapping[str, Any]) -> Study:
    """A composed configuration of BackFed."""
    top = Source(values)
    clients = int(top.need("num_clients"))
    attack_settings = top.part("atk_config")
    base = _base(top, clients)
    server = _server(top, base)
    attack = None if top.get("no_attack") else _attack(top, attack_settings)
    _participation(top, attack_settings, clients, base)
    top.ignore(
        "aggregator_config", "client_optimizer_config", "hydra", "wandb", "plot_data_distribution", "deterministic"
    )
    top.ignore(
        "plot_client_selection", "progress_bar", "datapath", "test_batch_size", "num_workers", "pin_memory", "normalize"
    )
    top.ignore("training_mode", "mode", "cuda_visible_devices", "num_cpus", "num_gpus", "save_model", "save_checkpoint")
    top.ignore(
        "save_checkpoint_rounds", "save_model_rounds", "save_logging", "exp_name", "dir_tag", "name_tag", "num_classes"
    )
    top.ignore(
        "task",
        "benign_clients",
        "disable_progress_bar",
        "output_dir",
        "debug_fraction_data",
        "federated_val_split",
        "debug",
        "federated_evaluation",
        "dataset",
    )
    seed = int(top.get("seed", 0))
    top.close()
    return Study(base, {"attack": attack}, {"server": server}, [seed], top.unknown)


def _base(top: Source, clients: int) -> dict[str, Any]:
    dataset, model = top.need("dataset"), top.get("model")
    base: dict[str, Any] = {"rounds": int(top.get("num_rounds", 600)), "data": DATA.get(dataset, str(dataset).lower())}
    if dataset not in DATA:
        top.say("dataset", "no such data here: set data")
    alpha = top.get("alpha", 0.5)
    dirichlet = top.get("partitioner", "dirichlet") == "dirichlet"
    base["partition"] = {"name": "iid", "clients": clients}
    if dirichlet:
        base["partition"] = {"name": "dirichlet", "clients": clients, "alpha": alpha}
    if model in MODELS:
        base["model"] = MODELS[model]
    else:
        top.say("model", "no such model here: ours by default")
    client = top.part("client_config")
    optimizer = {"name": str(client.get("optimizer", "sgd")), "lr": client.get("lr")}
    settings = Source(top.values.get("client_optimizer_config", {}).get(optimizer["name"], {}) or {})
    optimizer["lr"] = float(optimizer["lr"] or settings.get("lr", 0.1))
    for key in ("momentum", "weight_decay"):
        value = client.get(key, settings.get(key))
        if value and not (key == "momentum" and optimizer["name"] != "sgd"):
            optimizer[key] = float(value)
    if optimizer["name"] not in ("sgd", "adam"):
        client.say("optimizer", "read as adam")
        optimizer["name"] = "adam"
    size = client.get("batch_size") or client.get("train_batch_size") or 64
    base["client"] = {"epochs": int(client.get("local_epochs", 1)), "batch_size": int(size), "optimizer": optimizer}
    client.ignore("dataset", "mixed_precision", "timeout", "val_split", "seed", "deterministic", "training_mode")
    client.ignore("val_batch_size")
    client.close()
    base["evaluation"] = {"every": int(top.get("test_every", 1))}
    for key in ("checkpoint", "pretrain_model_path"):
        if top.get(key):
            top.say(key, "trained from a random start here")
    return base


def _server(top: Source, base: dict[str, Any]) -> dict[str, Any]:
    name = str(top.get("aggregator", "unweighted_fedavg"))
    parameters = Source(top.values.get("aggregator_config", {}).get(name) or {}, f"{name}.", top.unknown)
    parameters.ignore("_target_", "save_plots", "strategy", "deepsight_batch_size", "oracle")
    server = {"lr": float(parameters.get("eta", 1.0)), "weights": "samples" if name == "weighted_fedavg" else "equal"}
    made: dict[str, Any] = {"server": server}
    if name == "fedprox":
        base["client"]["callbacks"] = {
            "proximal": {"name": "proximal_pull", "rho": parameters.get("proximal_mu", 0.01)}
        }
        parameters.close()
        return made | {"aggregator": EQUAL}
    if name in RULES:
        return made | {"aggregator": translated(RULES[name], parameters, name)}
    if name in DEFENSES:
        defense = translated(DEFENSES[name], parameters, name)
        if name in NEEDS_SAMPLES:
            base["data"] = {"name": base["data"], "validation": 1000}
        return made | {"aggregator": EQUAL, "defenses": {defense["name"]: defense}}
    top.say("aggregator", "read as the mean")
    return made | {"aggregator": EQUAL}


def _attack(top: Source, settings: Source) -> dict[str, Any] | None:
    data, model = settings.get("data_poison_method", "pattern"), settings.get("model_poison_method", "base")
    if data not in TRIGGERS:
        settings.say("data_poison_method", "no such backdoor here: nobody attacks")
        return None
    objective, differs = TRIGGERS[data]
    if differs:
        top.unknown.append(f"atk_config.data_poison_method: {data} ({differs})")
    made: dict[str, Any] = {"name": {"a3fl": "a3fl", "iba": "iba"}.get(data, "model_replacement"), "boost": 1.0}
    if model in ("neurotoxin", "chameleon"):
        if made["name"] != "model_replacement":
            settings.say("model_poison_method", f"one method at a time here: {made['name']}")
        else:
            made["name"] = model
    elif model != "base":
        settings.say("model_poison_method")
    target, source = settings.get("target_class", 0), settings.get("source_class", 0)
    mode = MODES.get(settings.get("attack_type", "all2one"), "all_to_one")
    objective = {**objective, "label": int(target)}
    if objective["name"] == "trigger" and mode != "all_to_one":
        objective |= {"mode": mode} | ({"source": int(source)} if mode == "one_to_one" else {})
    made["objective"] = objective
    if settings.get("scale_weights"):
        made["boost"] = float(settings.get("scale_factor", 1.0))
    if settings.get("poisoned_is_projection"):
        made["radius"] = float(settings.get("poisoned_projection_eps", 10))
        made["project_every"] = int(settings.get("poisoned_projection_frequency", 2))
    made["poison_fraction"] = float(settings.get("poison_rate", 0.3125))
    made["epochs"] = int(settings.get("poison_epochs", 6))
    lr = top.values.get("client_config", {}).get("lr")
    if settings.get("use_atk_optimizer") and lr:
        made["lr_factor"] = float(settings.get("poisoned_lr", 0.05)) / float(lr)
    for key in ("step_scheduler", "poison_until_convergence", "mutual_dataset", "random_class"):
        if settings.get(key):
            settings.say(key)
    if settings.get("poison_mode", "online") == "multi_task":
        settings.say("poison_mode", "dirty samples stand among the clean ones of a batch")
    return made


def _participation(top: Source, settings: Source, clients: int, base: dict[str, Any]) -> None:
    per_round = top.get("num_clients_per_round") or max(1, round(float(top.get("fraction_fit", 0.1)) * clients))
    chosen, fixed = settings.get("adversary_selection", "random"), settings.get("malicious_clients") or []
    if settings.get("random_adversaries") is False:
        chosen = "fixed"
    share = settings.get("fraction_adversaries", 0.1)
    malicious = {"single": 1, "fixed": len(fixed)}.get(chosen, round(float(share) * clients))
    made: dict[str, Any] = {"name": "k_of_n", "k": int(per_round), "malicious": malicious}
    scheme = settings.get("selection_scheme", "random")
    if scheme == "all-adversary":
        made["forced"] = True
    elif scheme != "random":
        settings.say("selection_scheme", "malicious clients are sampled like all others here")
    first, last = settings.get("poison_start_round", 1), settings.get("poison_end_round", 0)
    once = (settings.get("poison_frequency") or settings.get("poison_scheme")) == "single-shot"
    if top.values.get("checkpoint"):
        settings.unknown.append(
            f"atk_config.poison_start_round: {first} (counted from the checkpoint's round: from round 0 here)"
        )
        first = 1
    if once:
        made["schedule"] = {"name": "once", "round": max(0, int(first) - 1)}
    elif first > 1:
        made["schedule"] = {"name": "from_round", "round": int(first) - 1}
        if last < base["rounds"] + first - 1:
            settings.unknown.append(f"atk_config.poison_end_round: {last}")
    settings.ignore("poison_interval") if settings.values.get("poison_interval", 1) == 1 else settings.say(
        "poison_interval"
    )
    settings.ignore(
        "dataset", "num_classes", "data_poison_config", "model_poison_config", "atk_optimizer_config", "atk_optimizer"
    )
    settings.ignore(
        "follow_protocol", "poison_convergence_threshold", "num_attacker_samples", "attack_alpha", "step_size"
    )
    settings.ignore("num_adversaries_per_round", "poison_rounds", "scale_factor", "poisoned_projection_eps")
    settings.ignore("poisoned_projection_frequency")
    base["participation"] = made
    if not top.values.get("no_attack"):
        settings.close()
