"""The simulation's grid and workers do what Flower's own simulation does with the same apps."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from shared.errors import SimulationError
from shared.flower.simulation import InProcess, SimulationGrid, run_server
from shared.flower.workers import Workers, WorkerSettings

NODES = 3
Seen = list[dict[str, Any]]


def load_app() -> ClientApp:
    """Return an app that says who it is and what it was told; site 2 always fails."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition == 2:
            raise ValueError("out of order")
        said = {
            "partition": partition,
            "told": message.content.config_records["told"]["what"],
            "round": message.metadata.group_id,
            "to": message.metadata.dst_node_id == context.node_id,
        }
        return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)

    return app


def server(seen: Seen) -> ServerApp:
    """Return an app that asks every node twice and notes what came back, in a fixed order."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < NODES:
            pass  # Flower's loop registers its nodes in another thread
        for number in (1, 2):
            content = RecordDict({"told": ConfigRecord({"what": f"word {number}"})})
            asked = [
                Message(content, dst_node_id=node, message_type="train", group_id=str(number))
                for node in sorted(grid.get_node_ids())
            ]
            answers = [note(reply) for reply in grid.send_and_receive(asked)]
            seen.extend(sorted(answers, key=str))

    return app


def note(reply: Message) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": reply.metadata.message_type, "group": reply.metadata.group_id}
    kind["answers"] = bool(reply.metadata.reply_to_message_id)
    if reply.has_error():
        return {**kind, "error": reply.error.code, "why": "out of order" in str(reply.error.reason)}
    return {**kind, **reply.content.config_records["said"]}


@pytest.fixture(scope="module")
def flowers_own() -> Seen:
    from flwr.simulation import run_simulation

    seen: Seen = []
    resources: Any = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(server(seen), load_app(), NODES, backend_config=resources)
    return seen


def test_flower_itself_answers_as_the_apps_say(flowers_own: Seen) -> None:
    assert len(flowers_own) == 2 * NODES
    errors = [answer for answer in flowers_own if "error" in answer]
    assert [(e["group"], e["why"]) for e in errors] == [("1", True), ("2", True)]
    assert {a["partition"] for a in flowers_own if "error" not in a} == {0, 1}


def test_workers_give_the_answers_of_flowers_own_loop(flowers_own: Seen) -> None:
    seen: Seen = []
    with closing(Workers(WorkerSettings(workers=2), load_app)) as workers:
        assert len(workers) == 2
        run_server(server(seen), SimulationGrid(workers, NODES, {}))
        assert not workers.busy
    assert seen == flowers_own


def test_a_run_config_reaches_both_apps() -> None:
    told: list[object] = []
    client, coordinator = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        told.append(context.run_config)
        return Message(RecordDict(), reply_to=message)

    @coordinator.main()
    def main(grid: Grid, context: Context) -> None:
        told.append(context.run_config)
        asked = [Message(RecordDict(), dst_node_id=n, message_type="train") for n in (1, 2)]
        assert len(list(grid.send_and_receive(asked))) == 2

    run_server(coordinator, SimulationGrid(InProcess(client), 2, {"folder": "here"}))
    assert told == [{"folder": "here"}] * 3


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "127.0.0.1:999999", "no where:6379"])
def test_a_cluster_that_is_not_there_is_one_line(address: str) -> None:
    with pytest.raises(SimulationError, match=r"no Ray cluster answers: .*ray-address"):
        Workers(WorkerSettings(1, address=address.format(port=free_port())), load_app)


def test_sigterm_stays_with_whoever_had_it() -> None:
    def mine(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with closing(Workers(WorkerSettings(workers=1), load_app)):
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_workers_join_a_cluster_that_runs_and_leave_it_running(flowers_own: Seen) -> None:
    with cluster(cpus=2) as address:
        for _ in range(2):
            seen: Seen = []
            with closing(Workers(WorkerSettings(1, address=address), load_app)) as workers:
                assert len(workers) == 2  # as many as the cluster has room for
                run_server(server(seen), SimulationGrid(workers, NODES, {}))
            assert seen == flowers_own


@contextmanager
def cluster(cpus: int) -> Iterator[str]:
    """Run a Ray cluster of this machine alone, as `ray start` does."""
    ray = Path(sys.executable).with_name("ray")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        port = free_port()
        options = f"--head --port {port} --num-cpus {cpus} --node-ip-address 127.0.0.1"
        options += f" --include-dashboard false --temp-dir {folder} --block"
        with subprocess.Popen(
            [str(ray), "start", *options.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        ) as process:
            assert process.stdout is not None
            try:
                assert any("Ray runtime started" in line for line in process.stdout)
                yield f"127.0.0.1:{port}"
            finally:
                process.send_signal(signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
    return port
