"""On a cluster of two nodes on this machine, which runs before training begins, and of which one goes away."""

from importlib.util import find_spec

import pytest

if find_spec("ray") is None:  # which importing it would keep from listening on 127.0.0.1 alone, see import_ray
    pytest.skip("needs Ray", allow_module_level=True)

from fastrl.distributed.cluster import import_ray

ray = import_ray("tests")

from ray.cluster_utils import Cluster  # noqa: E402

from fastrl.distributed import IMPALA, ApeX  # noqa: E402

SMALL = {"hidden": (16,), "chunk": 25, "num_envs": 2, "learning_starts": 200, "batch_size": 32}


@pytest.fixture(scope="module")
def nodes():
    """The cluster, and its nodes: one for the learner and the shards, the other for the actors."""
    ray.shutdown()
    how = {"object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **how})
    yield cluster, cluster.add_node(num_cpus=3, object_store_memory=2**27)
    ray.shutdown()
    cluster.shutdown()


def test_a_run_on_the_nodes_of_a_cluster(nodes):
    cluster, _ = nodes
    seen = []

    def callback(agent):
        if agent.steps == 1000:
            seen.extend(ray.nodes())

    agent = ApeX("CartPole-v1", seed=1, address=cluster.address, **SMALL)
    agent.learn(1500, callback=callback, progress=False)
    assert agent.steps >= 1500 and agent.n_updates > 300
    # Actors want a CPU each, which only the second node has.
    assert sorted(node["Resources"].get("CPU", 0) for node in seen) == [0, 3]
    assert {node["NodeManagerAddress"] for node in seen} == {"127.0.0.1"}
    assert agent._numbers["lost_actors"] == agent._numbers["lost_shards"] == 0
    assert not ray.is_initialized()  # it has left the cluster, which goes on


def test_a_node_that_goes_away(nodes):
    cluster, node = nodes
    agent, more = IMPALA("CartPole-v1", seed=1, address=cluster.address, hidden=(16,), num_envs=2, n_steps=25), []

    def callback(agent):
        if agent.steps == 500:
            cluster.remove_node(node)
            more.append(cluster.add_node(num_cpus=3, object_store_memory=2**27))

    with pytest.warns(UserWarning, match=r"actor \d has died and was replaced"):
        agent.learn(2000, callback=callback, progress=False)
    assert agent.steps >= 2000 and agent._numbers["lost_actors"] >= 2 and len(more) == 1
