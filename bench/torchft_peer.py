"""torchft with the same model: how long its survivors stand still, and how many of them crash.

python -m bench.torchft_peer TRACE LIGHTHOUSE     one of its replica groups, which runs until it is killed
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from adaptrain.elastic.state.sample_log import read_times
from adaptrain.rpc.ports import hold_port

from bench.stalls import stalls_after

WINDOW_SECONDS = 10.0
START_SECONDS = 180.0
"""At its program's defaults a lighthouse waits 60 s for replicas that beat and have not come."""
DEFAULTS: dict[str, int] = {}
TUNED = {"heartbeat_timeout_ms": 1000, "quorum_tick_ms": 10}
"""Of its lighthouse. With shorter heartbeats, replicas that live are taken for dead on two cores."""
EAGER = TUNED | {"join_timeout_ms": 100}
"""Nor does it wait any longer for a replica that lives: who takes 0.1 s more than the others for a step is left out."""


def train(trace: str, lighthouse: str) -> None:
    """torchft's loop for a replica group of one process.

    Gradients are summed through its manager, which takes note of errors. The hook of its DistributedDataParallel
    (0.2.0, ddp.py: ``assert fut._fut``) ends the process when a peer is lost: nobody would go on who could be timed.
    """
    import torch
    from adaptrain.data.digits import digits
    from torch.distributed import TCPStore
    from torch.nn.utils import parameters_to_vector
    from torchft import Manager, Optimizer, ProcessGroupGloo

    from bench.paced import mlp

    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    network = mlp(0.01)
    adamw = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def restore(state: dict[str, Any]) -> None:
        network.load_state_dict(state["model"])
        adamw.load_state_dict(state["optimizer"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
        load_state_dict=restore,
        state_dict=lambda: {"model": network.state_dict(), "optimizer": adamw.state_dict()},
        min_replica_size=1,
        timeout=timedelta(seconds=10),
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=lighthouse,
        replica_id=os.environ["PEER_NAME"],
        hostname="127.0.0.1",
    )
    optimizer, data = Optimizer(manager, adamw), digits().train
    with (Path(trace) / f"{os.environ['PEER_NAME']}.jsonl").open("a", buffering=1) as file:
        while True:
            x, y = data.fetch(torch.randint(len(data), (64 // max(1, manager.num_participants()),)))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            flat = parameters_to_vector(gradients)
            manager.allreduce(flat).wait()
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
            before = manager.current_step()
            optimizer.step()
            if manager.current_step() > before:
                said = {"what": "applied", "time": time.time(), "step": before, "size": manager.num_participants()}
                file.write(json.dumps(said) + "\n")


@dataclass(frozen=True)
class Found:
    """What became of the survivors."""

    stalls: list[float]
    """The longest of any survivor, seconds, for each kill."""
    crashed: int


class Replicas:
    """Replica groups around one lighthouse."""

    def __init__(self, trace: Path, settings: dict[str, int]) -> None:
        self._trace = trace
        self._held = hold_port("127.0.0.1")
        self._port = int(self._held.getsockname()[1])
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = [str(Path(sys.executable).parent / "torchft_lighthouse"), f"--bind=127.0.0.1:{self._port}"]
        self._lighthouse = subprocess.Popen([*command, "--min_replicas=1", *flags], stderr=subprocess.DEVNULL)
        self._next = 0
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        name = f"replica-{self._next}"
        self._next += 1
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "bench.torchft_peer", str(self._trace), f"http://127.0.0.1:{self._port}"],
            env=os.environ | {"PEER_NAME": name, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def crashed(self) -> list[str]:
        """Forget and name those that have ended."""
        gone = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in gone:
            del self.processes[name]
        return gone

    def together(self, size: int) -> bool:
        """Whether all step together, and are so many."""
        newest = [self._newest(name) for name in self.processes]
        return len(newest) == size and all(s == size and time.time() - at < 1.0 for at, s in newest)

    def _newest(self, name: str) -> tuple[float, int]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            last = json.loads((self._trace / f"{name}.jsonl").read_text().rstrip().rsplit("\n", 1)[-1])
            return float(last["time"]), int(last["size"])
        return 0.0, 0

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        self._lighthouse.kill()
        self._lighthouse.wait()
        self._held.close()


def kills(count: int, settings: dict[str, int], workers: int = 3) -> Found:
    """SIGKILL one of ``workers`` so many times, each replaced, as are those that crash."""
    chance = random.Random(0)
    events, crashed = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        replicas = Replicas(Path(scratch), settings)

        def fill() -> int:
            """Replace whoever is gone until all step together; how many had crashed."""
            gone, until = 0, time.monotonic() + START_SECONDS
            while not replicas.together(workers):
                assert time.monotonic() < until, "torchft's replicas don't step together"
                gone += len(replicas.crashed())
                for _ in range(workers - len(replicas.processes)):
                    replicas.start()
                time.sleep(0.1)
            return gone

        try:
            fill()
            for _ in range(count):
                time.sleep(2 + chance.random())
                victim = chance.choice(sorted(replicas.processes))
                events.append(time.time())
                replicas.processes.pop(victim).send_signal(signal.SIGKILL)
                time.sleep(WINDOW_SECONDS)
                crashed += fill()
            time.sleep(WINDOW_SECONDS + 1)
        finally:
            replicas.close()
        worst: dict[float, float] = {}
        for path in Path(scratch).glob("*.jsonl"):
            times = read_times(Path(scratch), path.stem)
            for event in events:
                for stall in stalls_after(times, [event], WINDOW_SECONDS):
                    worst[event] = max(worst.get(event, 0.0), stall)
    return Found(list(worst.values()), crashed)


if __name__ == "__main__":
    train(*sys.argv[1:3])
