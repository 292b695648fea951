"""One rank of a learner, as a process: learns, saves or loads as its task says, and prints what came of it as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from learner.checkpoint import Checkpoints
from learner.ranks import Iteration, all_sum, share
from tests.learner.made_up import credit, rollout
from tests.learner.training import Rank


def work(task: dict[str, Any]) -> dict[str, Any]:
    rank, ranks = task["rank"], task["ranks"]
    learner = Rank(task["model"], Path(task["pipeline"]) if task.get("pipeline") else None)
    state = None
    if "load" in task:
        state = Checkpoints(Path(task["load"])).load(newest(task["load"]), learner.module, learner.stepper.optimizer)
    stats = [s for _ in range(task["iterations"]) for s in learner.learn(ranks=ranks, rank=rank)]
    if "save" in task:
        Checkpoints(Path(task["save"])).save(5, learner.module, learner.stepper.optimizer, {"note": "kept"})
    if rank == 0 and "weights" in task:
        torch.save(learner.weights(), task["weights"])
    elif "weights" in task:
        learner.weights()  # gathering takes all ranks
    sums = {name: float(tensor.double().sum()) for name, tensor in learner.weights().items()}
    return {
        "sums": sums,
        "stats": [[s.loss, s.grad_norm, s.watched["ratio"]] for s in stats],
        "state": state,
        "shared": told(rank),
        "ranks summed": all_sum([1.0, float(rank)]),
    }


def told(rank: int) -> list[Any]:
    """What rank 0 shares, as this rank gets it."""
    mine = Iteration((rollout(3), rollout(4)), (credit(0.5, -0.25), credit(1.0, counted=[False]))) if rank == 0 else None
    came = share(mine)
    credits = [[c.weights.tolist(), c.counted.tolist()] for c in came.credits]
    return [[g.group for g in came.groups], credits, came.stop, share(Iteration(stop=True) if rank == 0 else None).stop]


def newest(folder: str) -> Path:
    found = Checkpoints(Path(folder)).newest()
    assert found is not None
    return found


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(task["meeting"], task["ranks"]), rank=task["rank"],
                            world_size=task["ranks"])  # fmt: skip
    answer = work(task)
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
