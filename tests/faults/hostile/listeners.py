"""Listeners of a job that trains: strangers of every kind on its ports, and members that say what no member says."""

import asyncio
import itertools
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from adaptrain.elastic.membership.coordinator import Coordinator
from adaptrain.elastic.state.sample_log import read_times
from adaptrain.local.processes import LocalJob
from adaptrain.rpc import framing
from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.e2e.local_jobs import job, running, step_of, wait_for
from tests.faults.hostile.mutate import line, mutated
from tests.faults.hostile.outcome import Outcome
from tests.support.protocol import greet

CAMPAIGN_SECONDS = 20.0
"""A run of this length has the machine for itself, and the group must stay as it is."""
STEP_SECONDS = 0.05
AT_ONCE = 8
"""Connections that are made at the same time; many more are kept open."""
KEPT = 500
TOKEN = "secret"
EPOCH = 1 << 32
SAID: list[framing.Frame] = [
    {"is": "beating", "doing": "computing", "age": 0.1, "bound": 0.0, "version": 1, "step": 1},
    {"is": "ready", "epoch": EPOCH + 1, "port": 1234},
    {"is": "broken", "epoch": EPOCH + 1, "why": "x"},
    {"is": "ended", "epoch": EPOCH + 1, "failed": False},
    {"is": "leaving"},
    {"is": "note", "message": "m"},
    {"is": "stall", "epoch": EPOCH + 1, "seconds": 0.5},
    {"is": "report", "step": 3, "loss": 0.5, "metrics": {"val/loss": 1.0}, "best": {}, "checkpoint_error": ""},
    {"is": "done", "result": {"outcome": "completed", "step": 3, "epoch": 1}, "step": 3},
    {"is": "hello", "protocol": framing.PROTOCOL, "id": "w", "nonce": "0" * 32, "proof": "0" * 64},
]
REQUESTS = [
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /progress HTTP/1.1\r\nAuthorization: Bearer x\r\n\r\n",
    b'POST /trials HTTP/1.1\r\nAuthorization: Adaptrain nonce="1.a.b", count="1", body="", proof=""\r\n\r\n',
    b"POST /trials HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /trials HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
]
FRAMES = [framing.encode(frame) for frame in SAID]
_MAGIC = struct.pack("<BI", 0, 0x3C85F7CE)
STORE = [
    _MAGIC + struct.pack("<BQ", 1, 8) + b"k" * 8 + struct.pack("<Q", 8_000_000) + b"v" * 1000,
    _MAGIC + struct.pack("<BQ", 1, 2**62),
    _MAGIC + struct.pack("<BQ", 9, 2**40),
]
"""What torch's TCPStore takes: a long value that has begun, and lengths that cannot be."""


def control(seconds: float, rng: random.Random) -> Outcome:
    """Strangers on the control port of a job, and members of another coordinator that say anything."""
    outcome = Outcome("control")
    asyncio.run(_members(outcome, seconds / 3, rng))
    _strangers(outcome, seconds * 2 / 3, rng, lambda local, _: [local.control_address[1]], FRAMES)
    return outcome


def rendezvous(seconds: float, rng: random.Random) -> Outcome:
    """Strangers on the ports where the members of a group meet."""
    outcome = Outcome("rendezvous")
    _strangers(outcome, seconds, rng, lambda _, pids: _listening(pids, _challenges), [*FRAMES, *STORE])
    return outcome


def http(seconds: float, rng: random.Random) -> Outcome:
    """Strangers on the HTTP ports of a job's coordinator and workers."""
    outcome = Outcome("http")
    _strangers(outcome, seconds, rng, lambda _, pids: _listening(pids, _serves_http), REQUESTS)
    return outcome


async def _members(outcome: Outcome, seconds: float, rng: random.Random) -> None:
    """Who knows the token may disturb its job, but ends neither the coordinator nor a task of it."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, said: outcome.escaped.update([str(said.get("exception") or said["message"])]))
    coordinator = Coordinator(1, TOKEN, 1, "ns", "job")
    opened: asyncio.Future[int] = loop.create_future()
    serves = asyncio.create_task(coordinator.run("127.0.0.1", 0, 0, lambda port, _: opened.set_result(port)))
    port, until = await opened, time.monotonic() + seconds
    while time.monotonic() < until and not serves.done():
        outcome.tries += 1
        hello = {"id": f"w{rng.randrange(7)}", "name": "w", "host": "h", "port": 1}
        hello |= {"group": rng.choice([0, EPOCH + rng.randrange(4)]), "peers": [], "version": 0}
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await greet(reader, writer, TOKEN, mutated(rng, hello) if rng.random() < 0.3 else hello)
                writer.writelines(line(rng, SAID) for _ in range(rng.randint(0, 5)))
                await writer.drain()
                if rng.random() < 0.3:
                    await asyncio.sleep(0.001)
            except framing.BadFrame:
                pass
            finally:
                writer.transport.abort()
    if serves.done():
        outcome.escaped[f"the coordinator ended: {serves.exception()!r}"] += 1
    errors = coordinator._metrics.refusals._counter.labels("ns", "job", "control", "error")._value.get()
    if errors:
        outcome.escaped["a handler failed"] += int(errors)
    json.dumps(coordinator.progress().model_dump(mode="json"), allow_nan=False)
    serves.cancel()
    await asyncio.gather(serves, return_exceptions=True)


def _strangers(
    outcome: Outcome,
    seconds: float,
    rng: random.Random,
    where: Callable[[LocalJob, list[int]], list[int]],
    said: list[bytes],
) -> None:
    """Honest members train on, at their pace and in the same group, and no process of theirs grows."""
    paced: AdaptiveTrainingJob = job(model={"name": "bench.paced:mlp", "args": {"seconds": STEP_SECONDS}})
    with tempfile.TemporaryDirectory() as folder, LocalJob(paced, trace=Path(folder)) as local:
        local.start_coordinator()
        workers = [local.start_worker(), local.start_worker()]
        epoch = running(local, 2).epoch
        wait_for("steps", lambda: step_of(local) > 20, local)
        time.sleep(seconds / 4)
        pids = [local.workers[number].pid or 0 for number in workers]
        assert local.coordinator is not None
        pids.append(local.coordinator.pid)
        ports = where(local, pids)
        assert ports
        before, first = [_used(pid) for pid in pids], step_of(local)
        asyncio.run(_attack(outcome, ports, seconds, rng, said))
        progress = local.progress() if seconds >= CAMPAIGN_SECONDS else _recovered(local, first)
        kept = seconds < CAMPAIGN_SECONDS or (progress is not None and progress.epoch == epoch)
        if progress is None or not kept or len(progress.members) != 2 or progress.step <= first:
            outcome.escaped[f"the honest members do not train on: {progress}"] += 1
        for pid, (megabytes, handles, threads) in zip(pids, before, strict=True):
            grown, more, started = (
                now - then for now, then in zip(_used(pid), (megabytes, handles, threads), strict=True)
            )
            outcome.grown = max(outcome.grown, grown)
            if more > 600 or started > 20:
                outcome.escaped[f"a process has {more:.0f} more descriptors and {started:.0f} more threads"] += 1
        times = read_times(Path(folder), f"worker-{workers[0]}")
        outcome.calm = _ratio([at for at, step in times if 20 < step <= first])
        outcome.ratio = _ratio([at for at, step in times if step > first])


def _recovered(local: LocalJob, first: int) -> Progress | None:
    """The progress once both train on. A sample may run beside much else, which makes a worker late by itself."""
    running(local, 2)
    wait_for("more steps", lambda: step_of(local) > first, local)
    return local.progress()


def _ratio(times: list[float]) -> float | None:
    """99th percentile of steps ÷ the median; None: they are too few."""
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    return steps[int(len(steps) * 0.99)] / statistics.median(steps) if len(steps) > 20 else None


async def _attack(outcome: Outcome, ports: list[int], seconds: float, rng: random.Random, said: list[bytes]) -> None:
    until = time.monotonic() + seconds
    kept: list[asyncio.StreamWriter] = []

    async def one() -> None:
        while time.monotonic() < until:
            outcome.tries += 1
            with suppress(OSError, asyncio.TimeoutError):
                port = rng.choice(ports)
                reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 2)
                match rng.randrange(4):
                    case 0:  # silent, or a byte now and then
                        kept.append(writer)
                        if len(kept) > KEPT:
                            kept.pop(0).transport.abort()
                        rng.choice(kept).write(b"G")
                    case 1:
                        writer.write(rng.choice(said))
                        await asyncio.wait_for(reader.read(1000), 0.2)
                        writer.transport.abort()
                    case _:
                        begun = rng.choice(said)
                        writer.write(begun[: rng.randint(0, min(60, len(begun)))] + line(rng, SAID))
                        writer.transport.abort() if rng.random() < 0.5 else writer.close()
            await asyncio.sleep(0.005)

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    for writer in kept:
        writer.transport.abort()


def _listening(pids: list[int], serves: Callable[[int], bool]) -> list[int]:
    said = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    ports = [int(one.split()[3].rpartition(":")[2]) for one in said if any(f"pid={pid}," in one for pid in pids)]
    return [port for port in ports if serves(port)]


def _challenges(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as asked:
            return b'"challenge"' in asked.recv(1000)
    except OSError:
        return False


def _serves_http(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _used(pid: int) -> tuple[float, float, float]:
    """Megabytes, descriptors and threads."""
    status: dict[str, Any] = dict(
        row.split(":\t", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in row
    )
    return int(status["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"])
