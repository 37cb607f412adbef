"""Tests on a Ray cluster of two nodes, in a separate environment: make ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MEMORY = 120 * 2**20
FAST = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
"""Makes a cluster notice a dead node sooner than with Ray's defaults."""


@contextmanager
def one_node() -> Iterator[Any]:
    """A cluster of a single node with one CPU."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": FAST}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes
    finally:
        nodes.shutdown()


def add_node(nodes: Any) -> Any:
    """Add a node with one CPU, and wait until it is ready."""
    node = nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
    nodes.wait_for_nodes()
    return node
