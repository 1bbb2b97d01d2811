"""ByzFL's `config.json`: every value may be a list, all combinations are run."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from fl_lightning.integrations._source import Source, Study, Word, labels, listed, translated

DATA = {"mnist": "mnist", "fashionmnist": "fashion_mnist", "cifar10": "cifar10"}
MODELS: dict[str, Any] = {
    "logreg_mnist": "linear",
    "ResNet18": "resnet18",
    "fc_mnist": {"name": "mlp", "hidden": [100]},
}
RULES = {
    "Average": Word({"name": "mean"}),
    "Median": Word({"name": "median"}),
    "TrMean": Word({"name": "trimmed_mean"}, {"f": "n_byzantine"}),
    "GeometricMedian": Word({"name": "geometric_median"}, {"nu": "nu", "T": "max_iter"}),
    "Krum": Word({"name": "krum"}, {"f": "n_byzantine"}),
    "MultiKrum": Word({"name": "multi_krum"}, {"f": "n_byzantine"}),
    "CenteredClipping": Word({"name": "centered_clipping", "tau": 100.0}, {"tau": "tau", "L": "steps"}),
    "MDA": Word({"name": "mda"}, {"f": "n_byzantine"}),
    "MoNNA": Word({"name": "monna", "index": 0}, {"f": "n_byzantine", "idx": "index"}),
    "Meamed": Word({"name": "meamed"}, {"f": "n_byzantine"}),
    "CAF": Word({"name": "caf"}, {"f": "n_byzantine"}),
    "SMEA": Word({"name": "smea"}, {"f": "n_byzantine"}),
}
NEEDS_F = {"TrMean", "Krum", "MultiKrum", "MDA", "MoNNA", "Meamed", "CAF", "SMEA"}
STEPS = {
    "NNM": Word({"name": "nnm"}, {"f": "n_byzantine"}),
    "ARC": Word({"name": "arc"}, {"f": "n_byzantine"}),
    "Clipping": Word(
        {"name": "clip", "max_norm": 2.0}, {"c": "max_norm"}, "its c bounds gradients, max_norm bounds updates"
    ),
    "Bucketing": Word({"name": "bucketing"}, {"s": "s"}),
}
ATTACKS = {
    "SignFlipping": Word({"name": "sign_flip", "of": "mean", "knowledge": "full"}),
    "InnerProductManipulation": Word({"name": "ipm", "knowledge": "full", "epsilon": 2.0}, {"tau": "epsilon"}),
    "ALittleIsEnough": Word(
        {"name": "alie", "knowledge": "full", "z": 1.5, "sign": "plus"},
        {"tau": "z"},
        "its deviation divides by H - 1, ours by H",
    ),
    "Optimal_InnerProductManipulation": Word(
        {"name": "optimal_ipm", "knowledge": "full"}, {"evals": "trials"}, "searched through the whole server here"
    ),
    "Optimal_ALittleIsEnough": Word(
        {"name": "optimal_alie", "knowledge": "full"}, {"evals": "trials"}, "searched through the whole server here"
    ),
    "Mimic": Word({"name": "mimic", "knowledge": "full", "target": "fixed"}),
    "Inf": Word({"name": "fault", "kind": "inf"}),
    "Gaussian": Word({"name": "gaussian", "replace": True, "std": 1.0}, {"mu": "mean", "sigma": "std"}),
    "LabelFlipping": Word({"name": "label_flip", "objective": {"name": "label_map", "mapping": "static"}}),
}


def byzfl(values: Mapping[str, Any]) -> Study:
    """A benchmark of ByzFL as a base, attacks and servers."""
    top = Source(values)
    bench, model, honest = top.part("benchmark_config"), top.part("model"), top.part("honest_clients")
    honest_clients, f_values = int(bench.need("nb_honest_clients")), listed(bench.need("f"))
    base = _base(top, bench, model, honest)
    data_seed, seed = bench.get("data_distribution_seed", 0), bench.get("training_seed", 0)
    seeds = [int(seed) + k for k in range(int(bench.get("nb_training_seeds", 1)))]
    if data_seed != seed or bench.get("nb_data_distribution_seeds", 1) != 1:
        top.unknown.append("data_distribution_seed: everything follows from one seed here")
    if tolerated := bench.get("tolerated_f"):
        top.unknown.append(f"benchmark_config.tolerated_f: {tolerated} (rules are told the true f)")
    if bench.get("set_honest_clients_as_clients"):
        bench.say("set_honest_clients_as_clients")
    spread, rules = _partitions(bench), _rules(top)
    servers: dict[str, dict[str, Any]] = {}
    for f, (where, partition), (name, rule, needs) in product(f_values, spread, rules):
        settings = {**rule, **({"n_byzantine": f} if needs else {})}
        settings |= {"pre": [_with_f(step, f) for step in rule["pre"]]} if "pre" in rule else {}
        label = ", ".join([name, *([f"f={f}"] if len(f_values) > 1 else []), *([where] if len(spread) > 1 else [])])
        servers[label] = {
            "aggregator": settings,
            "partition": {**partition, "clients": honest_clients + int(f)},
            "participation": {"name": "full", "malicious": int(f)},
        }
    attacks = _attacks(top)
    top.get("evaluation_and_results")
    for part in (bench, model, honest, top):
        part.close()
    return Study(base, attacks, servers, seeds, top.unknown)


def _base(top: Source, bench: Source, model: Source, honest: Source) -> dict[str, Any]:
    algorithm = bench.part("training_algorithm")
    name, parameters = algorithm.get("name", "DSGD"), algorithm.part("parameters")
    steps = int(parameters.get("local_steps_per_client", 1)) if name == "FedAvg" else 1
    if (share := parameters.get("proportion_selected_clients")) not in (None, 1, 1.0):
        top.unknown.append(f"proportion_selected_clients: {share} (everybody takes part)")
    if name not in ("DSGD", "FedAvg"):
        algorithm.say("name", "read as DSGD: one step a round")
    parameters.close()
    optimizer: dict[str, Any] = {"name": "sgd", "lr": float(model.get("learning_rate", 0.1))}
    if decay := honest.get("weight_decay", 0):
        optimizer["weight_decay"] = decay
    base: dict[str, Any] = {"rounds": int(bench.get("nb_steps", 800))}
    dataset = model.need("dataset_name")
    base["data"] = DATA.get(dataset, dataset)
    if dataset not in DATA:
        model.say("dataset_name", "no such data here: set data")
    if (kind := model.get("name")) in MODELS:
        base["model"] = MODELS[kind]
    else:
        model.say("name", "no such model here: ours by default")
    base["client"] = {"steps": steps, "batch_size": int(honest.get("batch_size", 25)), "optimizer": optimizer}
    momentum = honest.get("momentum", 0)
    if momentum and name == "DSGD":  # kept between the rounds, as ByzFL's clients do
        base["defenses"] = {"momentum": {"name": "client_momentum", "beta": momentum}}
    elif momentum:
        optimizer["momentum"] = momentum
    base["server"] = {"weights": "equal"}
    evaluation = top.values.get("evaluation_and_results") or {}
    base["evaluation"] = {"every": int(evaluation.get("evaluation_delta", 50))}
    if model.get("learning_rate_decay", 1.0) != 1.0:
        model.say("learning_rate_decay", "at milestones; client.optimizer.decay acts every round")
    if model.get("loss") not in (None, "NLLLoss", "CrossEntropyLoss"):
        model.say("loss")
    model.ignore("nb_labels", "milestones")
    bench.ignore("device", "size_train_set", "dtype", "nb_workers")
    return base


def _partitions(bench: Source) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for entry in listed(bench.get("data_distribution") or [{"name": "iid"}]):
        name = entry.get("name")
        for value in listed(entry.get("distribution_parameter")):
            if name == "iid":
                made: dict[str, Any] = {"name": "iid"}
            elif name == "dirichlet_niid":
                made = {"name": "dirichlet", "alpha": float(value)}
            elif name == "gamma_similarity_niid":  # a share gamma is uniform, the rest sorted
                made = {"name": "degree", "p": round(1 - float(value), 10)}
            elif name == "extreme_niid":
                made = {"name": "degree", "p": 1.0}
            else:
                bench.unknown.append(f"data_distribution: {name} (read as iid)")
                made = {"name": "iid"}
            found.append((name if value is None else f"{name} {value}", made))
    return found


def _rules(top: Source) -> list[tuple[str, dict[str, Any], bool]]:
    """Label, our mapping, and whether f has to be filled in."""
    steps = []
    for entry in top.get("pre_aggregators") or []:
        if entry["name"] in STEPS:
            parameters = Source(entry.get("parameters") or {}, f"{entry['name']}.", top.unknown)
            steps.append(translated(STEPS[entry["name"]], parameters, entry["name"]))
        else:
            top.unknown.append(f"pre_aggregators: {entry['name']}")
    found = []
    for entry in listed(top.get("aggregator") or []):
        name = entry["name"]
        if name not in RULES:
            top.unknown.append(f"aggregator: {name}")
            continue
        rule = translated(RULES[name], Source(entry.get("parameters") or {}, f"{name}.", top.unknown), name)
        found.append((name, {**rule, **({"pre": steps} if steps else {})}, name in NEEDS_F))
    return found or [("Average", {"name": "mean"}, False)]


def _with_f(step: dict[str, Any], f: int) -> dict[str, Any]:
    return {"n_byzantine": int(f), **step} if step["name"] in ("nnm", "arc", "bucketing") else step


def _attacks(top: Source) -> dict[str, dict[str, Any] | None]:
    entries = [entry for entry in listed(top.get("attack") or []) if entry]
    found: dict[str, dict[str, Any] | None] = {}
    for label, entry in zip(labels([entry["name"] for entry in entries]), entries, strict=True):
        name, parameters = entry["name"], Source(entry.get("parameters") or {}, f"{entry['name']}.", top.unknown)
        if name == "NoAttack":
            found[label] = None
        elif name in ATTACKS:
            found[label] = translated(ATTACKS[name], parameters, name)
        else:
            top.unknown.append(f"attack: {name}")
    return found
