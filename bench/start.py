"""CPU time of a worker, from its process's start until its first step. Value: CPU-seconds per worker, median.

The peer is torchrun with the same data, model and optimizer in an ordinary DDP loop: the CPU-seconds of its worker
process until its first step; those of its agent are shown beside. Both begin anew, as in a pod, with nothing imported.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from adaptrain.local.processes import LocalJob
from adaptrain_api.training.job import AdaptiveTrainingJob

from bench.report import emit
from bench.torchrun_peer import Agents

BAR = 4.0
LIMIT_SECONDS = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


def job(workers: int) -> AdaptiveTrainingJob:
    """A job on digits. Workers import this module too, so it has nothing that they don't."""
    phase = {
        **{"name": "train", "type": "supervised", "optimizer": {"name": "adamw", "learningRate": 0.001}},
        **{"batch": {"size": 64}, "stop": {"steps": 100000}},
    }
    spec = {"workers": {"min": workers, "max": workers}, "model": {"name": "mlp"}, "data": {"name": "digits"}}
    return AdaptiveTrainingJob.model_validate({"metadata": {"name": "start"}, "spec": spec | {"phases": [phase]}})


def cpu_seconds(pid: int) -> float:
    """Of a process that runs, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def first_steps(trace: Path, count: int) -> None:
    """Wait until so many workers applied a step each."""
    until = time.monotonic() + LIMIT_SECONDS
    while sum('"applied"' in file.read_text() for file in trace.glob("*.jsonl")) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{count} workers took no first step within {LIMIT_SECONDS:.0f} s")
        time.sleep(0.005)


def ours(workers: int) -> list[float]:
    """CPU-seconds of each worker until the last one's first step."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        LocalJob(job(workers), trace=Path(scratch), fork=False) as local,
    ):
        local.start_coordinator()
        for _ in range(workers):
            local.start_worker()
        first_steps(Path(scratch), workers)
        return [cpu_seconds(process.pid) for process in local.workers.values() if process.pid is not None]


def torchrun(workers: int) -> tuple[list[float], list[float]]:
    """CPU-seconds of each worker process, and of each agent, until the last worker's first step."""
    with tempfile.TemporaryDirectory() as scratch:
        agents = Agents(Path(scratch), f"{workers}:{workers}")
        try:
            for _ in range(workers):
                agents.start()
            first_steps(Path(scratch), workers)
            pids = [agent.pid for agent in agents.agents.values()]
            children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in pids]
            return [cpu_seconds(int(child)) for some in children for child in some], [cpu_seconds(pid) for pid in pids]
        finally:
            agents.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    mine, peers, agents = [], [], []
    for _ in range(arguments.turns):
        mine += ours(arguments.workers)
        workers, of_agents = torchrun(arguments.workers)
        peers += workers
        agents += of_agents
        print(f"worker {mine[-1]:.2f}, torchrun's worker {peers[-1]:.2f}, its agent {agents[-1]:.2f}", flush=True)
    value, peer = statistics.median(mine), statistics.median(peers)
    emit(
        "start", value, "CPU-seconds", "torchrun's worker", peer, value <= BAR, agent=statistics.median(agents),
        max=max(mine),
    )  # fmt: skip
