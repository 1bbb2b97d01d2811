"""A small app of Flower's with its own client loop, run as a program: prints how far its model ends from our own simulation's."""

import json
import sys

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fl_lightning import Federation, load
from fl_lightning.integrations.flower import AttackMod, FlowerStrategy, arrays_of, vector_of

ROUNDS = 3
settings = json.loads(sys.argv[1])
mod = AttackMod(settings)


def train(message: Message, context: Context) -> Message:
    """One step of gradient descent on all samples of a partition, by hand."""
    federation = mod.federation
    flat, client = federation.bench.flat, int(context.node_config["partition-id"])
    samples = federation.data.train[federation.assignment[client]]
    global_D = vector_of(flat, message.content.array_records["arrays"])
    step_D = flat.gradient(global_D, samples)
    record = RecordDict(
        {
            "arrays": arrays_of(flat, global_D - 0.5 * step_D),
            "metrics": MetricRecord({"num-examples": len(samples)}),
        }
    )
    return Message(content=record, reply_to=message)


app = ClientApp(mods=[mod])
app.train()(train)
server = ServerApp()
figures: dict[str, object] = {}


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FlowerStrategy(settings, fraction_evaluate=0.0)
    result = strategy.start(
        grid=grid, initial_arrays=strategy.initial_arrays(), num_rounds=ROUNDS, evaluate_fn=strategy.evaluate
    )
    federation = Federation(load(settings))
    federation.run()
    ours_D, theirs_D = federation.state.global_D, vector_of(federation.bench.flat, result.arrays)
    figures["apart"] = float((ours_D - theirs_D).abs().max())
    figures["moved"] = float((ours_D - federation.initial_D).abs().max())
    figures["ours"] = federation.state.history[-1]["global/accuracy"]
    figures["theirs"] = dict(result.evaluate_metrics_serverapp[ROUNDS])["global/accuracy"]
    figures["selected"] = dict(result.train_metrics_clientapp[ROUNDS]).get("attack/selected")
    figures["selected_ours"] = federation.state.history[-1].get("attack/selected")


torch.set_num_threads(1)
run_simulation(
    server_app=server, client_app=app, num_supernodes=5, backend_config={"client_resources": {"num_cpus": 1}}
)
print("FIGURES", json.dumps(figures))
