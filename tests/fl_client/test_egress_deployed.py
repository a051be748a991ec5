"""What leaves a device in a real deployment: SuperLink, SuperNode, and the bytes between them."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.message_pb2 import PushObjectRequest

from fl_client import app as module
from fl_client.egress import REFUSALS
from fl_client.trainer import NodeTrainer
from fl_core.config import RunConfig
from fl_core.wire import Phase
from fl_server.rounds import run_arms
from simulation import launch, supervisor
from tests.fake_grid import Clock, FakeGrid
from tests.leak_scan import beside_the_update, found_in, projected, replies_in, sent_update
from tests.recorded_nodes import Node, diaries, plant
from tests.recording_proxy import RecordingProxy, Request, parsed
from tests.tiny_runs import USERS, tiny_config

ROOT = Path(launch.__file__).resolve().parents[1]
SAME = {"kind": "lora", "rank": 2, "targets": "q_proj", "layers": "top:1"}
SETTINGS: dict[str, Any] = {
    **{f"{side}__{key}": value for side in ("shared", "personal") for key, value in SAME.items()},
    "arms": "dual",
    "method": "fdlora",
    "federation__server": "nesterov",
    "federation__rounds": 1,
    "federation__deadline_seconds": 60.0,
    "train__pooling": "last-mean",
    "train__final_steps": 2,
}
LEAK = {"method": "fdlora-as-printed", "federation__leak_personal_weights": True, "federation__rounds": 0}

DRIVER = """
import subprocess, sys
node, *runs = [part.split("\\n") for part in sys.argv[1].split("\\n\\n")]
subprocess.Popen(node)
for run in runs:
    subprocess.run(run, timeout=100)
"""
"""Starts the SuperNode, then one run after another; the supervisor ends all that is left."""


def _second(config: RunConfig, population: Path, folder: Path) -> Node:
    """The same run in this process: what is due, and what the device's personal numbers were."""
    config = config.model_copy(update={"out": str(folder)})
    planted = NodeTrainer(config, population, folder, 0, USERS)
    plant(planted.arm("dual"), seed=0)
    trainer = NodeTrainer(config, population, folder / "second", 0, USERS)
    plant(trainer.arm("dual"), seed=0)
    node = Node(module.app, config, 0, USERS, trainer)
    module._TRAINERS.clear()
    run_arms(config, FakeGrid({5: node}), folder, timer=Clock().timer())
    module._TRAINERS.clear()
    return node


def _deployed(configs: list[RunConfig], folder: Path) -> RecordingProxy:
    """Run the configurations on one SuperLink with one SuperNode that hosts user 0."""
    port, inner = launch.free_port(), launch.free_port()
    proxy, scratch = RecordingProxy(port), launch.short_folder()
    launch.write_connection(folder / "home", port)
    environment = launch.flower_environment(folder / "home", scratch, ROOT, launch.Resources(1))
    path = environment["PATH"]
    superlink, supernode, flwr = (
        launch.executable(name, path) for name in ("flower-superlink", "flower-supernode", "flwr")
    )
    node = [supernode, "--insecure", "--superlink", f"127.0.0.1:{proxy.port}", "--isolation", "subprocess"]
    node += ["--node-config", f"partition-id=0 num-partitions={USERS}"]
    node += ["--host", "127.0.0.1", "--port", str(inner)]
    commands = [node]
    for place, config in enumerate(configs):
        launch.stage_app(folder / f"app{place}", launch.FlowerApp(), config)
        commands.append([flwr, "run", str(folder / f"app{place}"), "duet", "--stream"])
    service = [superlink, "--insecure", "--isolation", "subprocess", "--host", "127.0.0.1"]
    plan = supervisor.Plan(
        service=[*service, "--port", str(port), "--disable-runtime-dependency-installation"],
        health=f"http://127.0.0.1:{port}/health",
        ready_seconds=60.0,
        command=[sys.executable, "-c", DRIVER, "\n\n".join("\n".join(command) for command in commands)],
        service_log=str(folder / "superlink.log"),
        command_log=str(folder / "runs.log"),
        scratch=str(scratch),
    )
    with launch.supervised(plan, environment) as process:
        process.wait(240)
    proxy.close()
    return proxy


@pytest.mark.slow
def test_a_device_sends_the_update_and_nothing_personal(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Two runs on one SuperLink: a method that keeps what is personal, and the one that leaks it."""
    population = tmp_path / "population"
    diaries().save(population)
    configs, nodes = [], []
    for name, changes in (("keeps", {}), ("leaks", LEAK)):
        config = tiny_config(tiny_model_folder, **{**SETTINGS, **changes})
        config = config.model_copy(update={"population": str(population), "out": str(tmp_path / name)})
        plant(NodeTrainer(config, population, tmp_path / name, 0, USERS).arm("dual"), seed=0)
        configs.append(config)
        nodes.append(_second(config, population, tmp_path / f"second-{name}"))
    proxy = _deployed(configs, tmp_path)
    log = (tmp_path / "runs.log").read_text()
    for config in configs:
        progress = launch.read_progress(Path(config.out) / "progress.json")
        assert progress is not None and progress.phase == "done", (progress, log)
    requests = proxy.requests()
    pushed = [PushObjectRequest.FromString(r.body) for r in requests if r.path.endswith("/push-object")]
    replies = replies_in(pushed)
    runs = list(dict.fromkeys(reply.metadata.run_id for reply in replies))
    assert [
        [reply.metadata.message_type for reply in replies if reply.metadata.run_id == run] for run in runs
    ] == [
        [Phase.TRAIN, Phase.PERSONALIZE],
        [Phase.UPLOAD, Phase.PERSONALIZE],
    ]
    for run, node, leaks in zip(runs, nodes, (False, True), strict=True):
        of_run = [reply for reply in replies if reply.metadata.run_id == run]
        own = {item.object_id for item in pushed if item.run_id == run}
        bodies = [r.body for r in requests if any(i.encode() in r.body for i in own)]
        assert bool(found_in(bodies, node.secrets())) == leaks
        for reply, sent in zip(of_run, node.sent, strict=True):
            assert beside_the_update(reply, sent.names, 1, REFUSALS) == set()
        update, first = sent_update(of_run[0], node.sent[0].names), node.sent[0]
        due = update * 0 if first.due is None else first.due
        assert bool(projected(update, due, first.personal)) == leaks
    keeps = nodes[0].secrets()
    whole = [said for said in proxy.raw if str(runs[1]).encode() not in said]
    assert len(whole) > 0 and not {name for name in found_in(whole, keeps) if name.startswith("text")}


def test_the_proxy_reads_what_httpx_sends() -> None:
    """Plain, chunked and compressed bodies, on one connection, through a server that answers none."""
    import socket
    import threading

    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = server.accept()
        for _ in range(3):
            said = b""
            while not (said.endswith(b"0\r\n\r\n") or said.endswith(b"end")):
                said += client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        client.close()

    threading.Thread(target=serve, daemon=True).start()
    proxy = RecordingProxy(server.getsockname()[1])
    packed = gzip.compress(b"packed")
    with httpx.Client(trust_env=False, timeout=5) as client:
        base = f"http://127.0.0.1:{proxy.port}"
        client.post(f"{base}/plain", content=b"the end")
        client.post(f"{base}/chunks", content=iter([b"in ", b"chunks"]))
        client.post(f"{base}/gzip", content=iter([packed]), headers={"content-encoding": "gzip"})
    proxy.close()
    server.close()
    assert proxy.requests() == [
        Request("/plain", b"the end"), Request("/chunks", b"in chunks"), Request("/gzip", b"packed"),
    ]  # fmt: skip
    assert list(parsed(proxy.raw[0][:-3]))[-1].path == "/chunks", "half a request is none"
