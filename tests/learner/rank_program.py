"""One rank of a learner, as a process: learns, saves and loads as its task says, and answers with JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from drover.learner.ranks import Iteration, Stop, all_sum, share
from drover.learner.saving.checkpoint import Checkpoints
from tests.learner.made_up import credit, rollout
from tests.learner.training import Rank


def learn(model: str, pipeline: Path, folder: Path) -> dict[str, Any]:
    """Learn one iteration from the start, saved to ``two/MODEL``, and one from the checkpoint ``one/MODEL``."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    learner = Rank(model, pipeline)
    stats = learner.learn(ranks=ranks, rank=rank)
    mine = Checkpoints(folder / "two" / model)
    mine.save(5, learner.module, learner.stepper.optimizer, {"note": "kept"})
    mine.finish()

    resumed, theirs = Rank(model, pipeline), Checkpoints(folder / "one" / model)
    newest = theirs.choose().folder
    assert newest is not None
    state = theirs.load(newest, resumed.module, resumed.stepper.optimizer)
    resumed.learn(ranks=ranks, rank=rank)

    weights, continued = learner.weights(), resumed.weights()
    torch.save({"weights": weights, "continued": continued}, folder / f"{model}-{rank}.pt")
    return {"stats": [[s.loss, s.grad_norm, s.watched["ratio"]] for s in stats], "note": state["note"]}


def told() -> list[Any]:
    """The iteration and the stop that rank 0 shares, as this rank gets them."""
    rank = dist.get_rank()
    mine = Iteration((rollout(3), rollout(4)), credit((0.5, -0.25), (1.0,))) if rank == 0 else None
    came = share(mine)
    assert isinstance(came, Iteration) and came.credit is not None
    stop = share(Stop("asked") if rank == 0 else None)
    assert isinstance(stop, Stop)
    return [
        [g.group for g in came.groups],
        [came.credit.rows.tolist(), came.credit.weights.tolist(), came.credit.terms],
        stop.reason,
    ]


def main() -> None:
    rank, ranks, pipeline, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "meeting"), ranks), rank=rank, world_size=ranks)
    answer: dict[str, Any] = {model: learn(model, pipeline, folder) for model in ("toy", "lora")}
    answer |= {"told": told(), "summed": all_sum([1.0, float(rank)])}
    (folder / f"answer-{rank}.json").write_text(json.dumps(answer))
    while len(list(folder.glob("answer-*.json"))) < ranks:  # no rank exits while another may still send to it
        time.sleep(0.05)
    os._exit(0)  # gloo's threads may crash at an orderly exit, which is not tested here


if __name__ == "__main__":
    main()
