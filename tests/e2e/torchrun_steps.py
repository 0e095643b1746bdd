"""A script for torchrun: it counts steps on, from its snapshot, until the file ``stop`` is there."""

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

folder = Path(os.environ["ADAPTRAIN_CHECKPOINT_DIR"])
snapshot = folder / "snapshot"
dist.init_process_group("gloo")
step = int(snapshot.read_text()) if snapshot.exists() else 0
while True:
    newest = torch.tensor([step, int((folder / "stop").exists())])
    dist.all_reduce(newest, dist.ReduceOp.MAX)
    step, stop = newest.tolist()
    if stop:
        break
    step += 1
    if dist.get_rank() == 0:
        snapshot.with_suffix(".new").write_text(str(step))
        snapshot.with_suffix(".new").rename(snapshot)
    time.sleep(0.01)
dist.destroy_process_group()
