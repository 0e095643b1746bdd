"""torchrun's elastic launcher, tuned, with the same model: how long its survivors stand still.

python bench/torchrun_peer.py train TRACE     the script that torchrun runs
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The fastest settings that we found to work. Without a store of its own, joins fail; with fewer missed beats, agents
# that live are taken for dead, and each goes on as a group of its own.
TUNED = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
RENDEZVOUS = "keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=1,join_timeout=60,close_timeout=5"
LIMIT_SECONDS = 180.0


def train(trace: str) -> None:
    """An ordinary DDP loop that checkpoints nothing: its restart begins anew, and only the gap counts."""
    import torch
    import torch.distributed as dist
    from adaptrain.data.digits import digits
    from torch.nn.parallel import DistributedDataParallel

    from bench.paced import mlp

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    data = digits().train
    model = DistributedDataParallel(mlp(0.01))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with (Path(trace) / f"{os.environ['PEER_NAME']}.jsonl").open("a", buffering=1) as file:
        for step in range(10**9):
            x, y = data.fetch(torch.randint(len(data), (64 // dist.get_world_size(),)))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            said = {"what": "applied", "time": time.time(), "step": step, "size": dist.get_world_size()}
            file.write(json.dumps(said) + "\n")


class Agents:
    """torchrun agents, one for each worker, that meet at one address."""

    def __init__(self, trace: Path, sizes: str) -> None:
        self._trace, self._sizes = trace, sizes
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        store = f"torch.distributed.TCPStore('127.0.0.1', {self._port}, is_master=True, wait_for_workers=False)"
        code = f"import time, torch.distributed; store = {store}; time.sleep(1e6)"
        # The rendezvous store lives outside all agents, so that each of them may be lost.
        self._store = subprocess.Popen([sys.executable, "-c", code])
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.lost: list[subprocess.Popen[bytes]] = []
        self._next = 0

    def start(self) -> str:
        name = f"agent-{self._next}"
        self._next += 1
        environment = os.environ | TUNED | {"PEER_NAME": name, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        self.agents[name] = subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", f"--nnodes={self._sizes}", "--nproc-per-node=1",
                "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self._port}", "--rdzv-id=bench",
                f"--rdzv-conf={RENDEZVOUS},is_host=0", "--monitor-interval=0.1", "--max-restarts=1000",
                "--module", "bench.torchrun_peer", "train", str(self._trace),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        return name

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """The loss of a pod, or its hanging: agent and worker at once."""
        self.lost.append(self.agents.pop(name))
        _signal_tree(self.lost[-1].pid, how)

    def newest(self, name: str) -> tuple[float, int]:
        """When its worker last applied a step, Unix time (0: never), and in a group of how many."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            last = json.loads((self._trace / f"{name}.jsonl").read_text().rstrip().rsplit("\n", 1)[-1])
            return float(last["time"]), int(last["size"])
        return 0.0, 0

    def wait_for_steps(self, since: float) -> bool:
        """Wait until all agents' workers applied a step together after a time; False if they never do."""
        until = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < until:
            newest = [self.newest(name) for name in self.agents]
            if all(moment > since and size == len(newest) for moment, size in newest):
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        for process in [*self.agents.values(), *self.lost]:
            _signal_tree(process.pid, signal.SIGKILL)
        self._store.kill()


def _signal_tree(pid: int, how: signal.Signals) -> None:
    """Kill or stop an agent and its workers, which live in sessions of their own."""
    with contextlib.suppress(OSError):
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        os.kill(pid, how)
        for child in children:
            _signal_tree(child, how)


def kill_gaps(count: int, workers: int = 3, how: signal.Signals = signal.SIGKILL) -> list[float]:
    """Seconds from a kill or stop until the survivors step again, for ``count`` of them, each with a replacement; at
    most ``LIMIT_SECONDS``."""
    gaps = []
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        agents = Agents(Path(scratch), f"1:{workers}")
        try:
            for _ in range(workers):
                agents.start()
            assert agents.wait_for_steps(0.0), "torchrun did not start"
            time.sleep(3)
            for _ in range(count):
                event = time.time()
                agents.kill(chance.choice(sorted(agents.agents)), how)
                survivors = sorted(agents.agents)
                before = min(agents.newest(name)[0] for name in survivors)
                # A step that was under way may still be written: what counts is a step after at least a second's gap.
                time.sleep(1.0)
                if not agents.wait_for_steps(time.time()):
                    gaps.append(LIMIT_SECONDS)
                    break
                gaps.append(min(_first_after(Path(scratch), n, event + 0.5) for n in survivors) - before)
                agents.start()
                assert agents.wait_for_steps(time.time() + 2), "the replacement did not join"
                time.sleep(2)
        finally:
            agents.close()
    return gaps


def _first_after(trace: Path, name: str, moment: float) -> float:
    lines = (trace / f"{name}.jsonl").read_text().splitlines()
    return min(t for line in lines if line.endswith("}") and (t := float(json.loads(line)["time"])) > moment)


if __name__ == "__main__":
    train(sys.argv[2])
