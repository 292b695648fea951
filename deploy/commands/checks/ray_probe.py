"""Prints the nodes of a Ray cluster. Runs in a process of its own, because a cluster that refuses may end the process.

``python -m drover.deploy.commands.checks.ray_probe ADDRESS FILE`` prints one JSON list with an object for each node:
``address``, ``resources`` (CPU, GPU and marks), the versions ``python``, ``drover`` and ``torch``, and ``file``: whether
the node sees FILE. A node that does not answer has ``error`` in the place of the versions.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARKS = ("rollout", "reward", "learner")
OFFERS = ("CPU", "GPU", *MARKS)
NODES_S = 60.0  # time for nodes to start a process and answer


def main() -> None:
    address, file = sys.argv[1:]
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look() -> dict[str, Any]:
        import platform
        from importlib import metadata
        from pathlib import Path

        versions = {"drover": metadata.version("drover-rl"), "torch": metadata.version("torch")}
        return {"python": platform.python_version(), **versions, "file": Path(file).exists()}

    ray.init(address=address, log_to_driver=False, logging_level="error")
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote()] = node
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=NODES_S)
    nodes = [_said(node, future if future in ready else None) for future, node in asked.items()]
    print(json.dumps(nodes))


def _said(node: dict[str, Any], future: Any) -> dict[str, Any]:
    import ray

    resources = {name: node["Resources"][name] for name in OFFERS if name in node["Resources"]}
    known = {"address": node["NodeManagerAddress"], "resources": resources}
    if future is None:
        return known | {"error": f"did not answer within {NODES_S:.0f} s"}
    try:
        said: dict[str, Any] = ray.get(future)
    except ray.exceptions.RayError as error:
        return known | {"error": str(error).strip().splitlines()[-1]}
    return known | said


if __name__ == "__main__":
    main()
