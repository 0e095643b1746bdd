"""100 workers that speak the protocol, half of which leave and join again at once, 20 times.

Value: the slowest storm, seconds until all that are there are in one group. The workers hold no model; what is measured
is the coordinator. Then the same of 16 real workers, forked from one process that has torch loaded: half of them are
killed or asked to leave while as many warm ones say hello; ``members`` is the slowest, seconds until all have taken a
step together. The peer is torch's own rendezvous, as torchrun uses it: the same number of nodes meet once.
"""

import argparse
import asyncio
import multiprocessing
import random
import signal
import statistics
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from adaptrain.elastic.state.sample_log import records
from adaptrain.local.processes import LocalJob
from adaptrain.rpc import framing

from bench.report import emit
from tests.e2e.local_jobs import job, wait_for
from tests.support.protocol import greet

PEER_SECONDS = 60.0
BAR_SECONDS, BAR_MEGABYTES = 3.0, 100.0
STEP_SECONDS = 0.05


class Client:
    """A worker without torch."""

    def __init__(self, id: str, address: tuple[str, int], token: str) -> None:
        self.id = id
        self.epoch = 0
        self.peers: frozenset[str] = frozenset()
        self._address, self._token = address, token
        self._task = asyncio.create_task(self._run())

    def kill(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address, limit=framing.MAX_FRAME)
        hello: dict[str, Any] = {"id": self.id, "name": self.id, "host": "127.0.0.1", "port": 1}
        await greet(reader, writer, self._token, hello | {"group": 0, "peers": [], "version": 0})
        beats = asyncio.create_task(self._beat(writer))
        try:
            while (frame := await framing.read(reader)) is not None:
                match frame["do"]:
                    case "leave" | "plan":
                        self.epoch = 0
                        writer.write(framing.encode({"is": "ready", "epoch": frame["epoch"]}))
                    case "form":
                        self.epoch, self.peers = frame["epoch"], frozenset(frame["peers"])
        finally:
            beats.cancel()
            writer.transport.abort()

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(framing.BEAT_SECONDS)
            beat = {"is": "beating", "doing": "computing", "age": 0, "bound": 0, "version": 1, "step": 1}
            writer.write(framing.encode(beat))


async def storms(address: tuple[str, int], token: str, size: int, count: int) -> list[float]:
    """Seconds that each storm took to end in one group of everybody."""
    chance, made, took = random.Random(0), 0, []
    clients: dict[str, Client] = {}
    for number in range(count + 1):
        for id in chance.sample(sorted(clients), len(clients) // 2):
            clients.pop(id).kill()
        while len(clients) < size:
            clients[f"c{made}"] = Client(f"c{made}", address, token)
            made += 1
        began = time.monotonic()
        while len({c.epoch for c in clients.values()}) > 1 or not all(
            c.peers == set(clients) for c in clients.values()
        ):
            await asyncio.sleep(0.005)
            assert time.monotonic() - began < 60, "no group of everybody"
        if number:
            took.append(time.monotonic() - began)
    return took


def real_storms(size: int, count: int) -> list[float]:
    """Seconds from each storm's beginning until all that are there have taken a step in a group of everybody."""
    chance = random.Random(0)
    model = {"name": "bench.paced:at_gate", "args": {"seconds": STEP_SECONDS}}
    storms: list[tuple[float, set[int]]] = []
    spec = job(model=model, workers={"min": 1, "max": size})
    with tempfile.TemporaryDirectory() as scratch, LocalJob(spec, trace=Path(scratch)) as local:
        trace = Path(scratch)
        local.start_coordinator()
        members: set[int] = set()
        for number in range(count + 1):
            gate = Path(scratch) / f"gate-{number}"
            leaving = set(chance.sample(sorted(members), len(members) // 2))
            coming = {local.start_worker(GATE=str(gate)) for _ in range(size - len(members) + len(leaving))}
            marks = [gate.with_suffix(f".{one}") for one in coming]
            wait_for("warm workers", lambda marks=marks: all(mark.exists() for mark in marks), local)
            storms.append((time.time(), members := members - leaving | coming))
            gate.touch()
            for one in leaving:
                local.signal(one, chance.choice([signal.SIGTERM, signal.SIGKILL]))
            begun = wait_for("a group of everybody", lambda those=members: _least(local, those), local)
            wait_for("steps", lambda those=members, step=begun: _least(local, those) > step + 1, local)
        workers = [int(path.stem.removeprefix("worker-")) for path in sorted(trace.glob("*.jsonl"))]
        first: dict[int, dict[int, float]] = {}
        """When each worker applied its first step, Unix time, by the epoch of its group."""
        for worker, told in zip(workers, records(trace), strict=True):
            for said in told:
                if said["what"] == "applied":
                    first.setdefault(said["group"], {}).setdefault(worker, said["time"])
    return [
        min(max(steps.values()) for steps in first.values() if steps.keys() == those) - began
        for began, those in storms[1:]
    ]


def _least(local: LocalJob, those: set[int]) -> int:
    """The step that all have taken, if they train together."""
    p = local.progress()
    if p is None or p.state != "running" or {int(m.id) for m in p.members} != those:
        return 0
    return min(m.step for m in p.members)


def rendezvous(size: int) -> float:
    """Seconds in which as many nodes meet over torch's dynamic rendezvous, each in a thread; at most PEER_SECONDS."""
    from torch.distributed import TCPStore
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def meet(number: int) -> None:
        own = TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=60))
        backend = C10dRendezvousBackend(own, "storm")
        parameters = RendezvousParameters(
            "c10d", "127.0.0.1", "storm", size, size, local_addr="127.0.0.1", last_call_timeout=1, join_timeout=300
        )
        create_handler(own, backend, parameters).next_rendezvous()

    began = time.monotonic()
    threads = [threading.Thread(target=meet, args=(number,), daemon=True) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, began + PEER_SECONDS - time.monotonic()))
    return min(time.monotonic() - began, PEER_SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--storms", type=int, default=20)
    arguments = parser.parse_args()
    with LocalJob(job()) as local:
        local.start_coordinator()
        wait_for("the coordinator", local.progress)
        token = (local.directory / "token").read_text()
        took = asyncio.run(storms(local.control_address, token, arguments.clients, arguments.storms))
        assert local.coordinator is not None
        status = Path(f"/proc/{local.coordinator.pid}/status").read_text()
        peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"storms, s: {[round(t, 2) for t in took]}; coordinator's memory {peak:.0f} MB", flush=True)
    real = real_storms(arguments.members, arguments.storms)
    print(f"storms of real workers, s: {[round(t, 2) for t in real]}", flush=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # whose end also ends threads that still wait
        peer = pool.apply(rendezvous, (arguments.clients,))
    ok = max(*took, *real) <= BAR_SECONDS and peak <= BAR_MEGABYTES
    name = "torch's dynamic rendezvous" + (" (not within this time)" if peer >= PEER_SECONDS else "")
    emit("storm", max(took), "s", name, peer, ok, median=statistics.median(took), megabytes=peak,
         members=max(real), members_median=statistics.median(real))  # fmt: skip
