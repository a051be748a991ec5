"""A Ray cluster that is there already: two Ray nodes on this machine, actors on both, same figures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from fl_client.store import PersonalStore
from fl_server.rounds import run_arms
from simulation import launch
from simulation.launch import Resources, federated_run
from tests.fake_grid import Clock, FakeGrid
from tests.tiny_runs import answering_with, nodes_of, tiny_config

CLUSTER = """
import sys, threading, time
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, logging_level="ERROR")
fewest = [2.0]

def watch():
    while True:
        fewest[0] = min(fewest[0], ray.available_resources().get("CPU", 0.0))
        time.sleep(0.2)

threading.Thread(target=watch, daemon=True).start()
print(cluster.address, flush=True)
sys.stdin.readline()
print(2.0 - fewest[0], flush=True)
sys.stdin.read()
ray.shutdown()
cluster.shutdown()
"""

Folders = Callable[[str], Path]


@pytest.fixture
def cluster() -> Iterator[tuple[str, Callable[[], float]]]:
    """The address of a cluster of two Ray nodes with a CPU each, and how many CPUs were in use at most."""
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        children: list[psutil.Process] = []
        try:
            address = process.stdout.readline().strip()
            assert address, "the cluster did not start"
            children = psutil.Process(process.pid).children(recursive=True)

            def most_used() -> float:
                process.stdin.write("\n")
                process.stdin.flush()
                return float(process.stdout.readline())

            yield address, most_used
        finally:
            process.stdin.close()
            process.wait(60)
            for child in children:
                if child.is_running():
                    child.kill()


@pytest.mark.slow
def test_actors_of_two_ray_nodes_give_what_one_node_gives(
    cluster: tuple[str, Callable[[], float]],
    tiny_model_folder: Path,
    tiny_population_folder: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(launch.__file__).parents[1]))
    address, most_used = cluster
    folder = tiny_population_folder("mixed")
    config = tiny_config(tiny_model_folder, arms="dual_dp", population=str(folder))
    federated_run(config, tmp_path / "cluster", Resources(5, ray_address=address), lambda _: None)
    (node,) = nodes_of(config, folder, tmp_path / "one", 1)
    grid = FakeGrid({10: answering_with(node)})
    run_arms(config, grid, tmp_path / "one", timer=Clock().timer(), settle_seconds=0.0)
    arms = [tmp_path / name / "arms" / "dual_dp" for name in ("one", "cluster")]
    found = [
        (load_file(arm / "shared.safetensors"), PersonalStore(arm / "personal").everyone()) for arm in arms
    ]
    assert most_used() == 2.0, "actors ran on both Ray nodes"
    (one, alone), (many, spread) = found
    assert one.keys() == many.keys()
    for key, value in one.items():
        np.testing.assert_allclose(many[key], value, atol=2e-5)
    np.testing.assert_array_equal(alone.user, spread.user)
    np.testing.assert_allclose(alone.after, spread.after, atol=2e-4)
    np.testing.assert_array_equal(alone.fusion, spread.fusion)
