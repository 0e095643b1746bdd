"""A fleet at rest: 1,000 jobs whose coordinators answer, beside 3,000 that have ended, on simulated nodes.

What is measured: the operator's status writes, processor time and memory while nothing happens but training; how soon a
deleted worker's successor is made; how soon a phase is told that changes; how old the progress in statuses is.
Coordinators' addresses are made local ones of this machine (``ip route``, so root is needed), where one process answers
for all of them. ``CLUSTER`` as in ``bench.operator``. Ends with one line of JSON.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from adaptrain_api.contracts.coordinator_api import HTTP_PORT
from adaptrain_api.contracts.proof import Gate
from adaptrain_operator.core import naming
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.kinds import JOB, POD, SECRET
from aiohttp import web

from bench.operator import (
    Object,
    bounded,
    make_namespace,
    memory,
    operated,
    own_writes,
    remove_namespace,
    scrape,
    simulate,
    spec,
    start,
    until_leading,
)
from localcluster.network import SIMULATED_PODS

WRITES, CORES, MEGABYTES = 20.0, 0.5, 160.0
SUCCESSOR, TOLD, AGE = 2.0, 2.0, 5.0
"""Seconds."""


async def watch(client: Client, path: str, selector: str = "") -> AsyncIterator[Object]:
    """What changes, from now on, with everything that there is first. The API server ends a watch that is slow."""
    version, api = "", client._api
    while True:
        headers: dict[str, str] = {"Accept": "application/json"}
        since = f"&resourceVersion={version}" if version else ""
        url = f"{path}?watch=1&allowWatchBookmarks=true&labelSelector={selector}{since}"
        await api.update_params_for_auth(headers, [], ["BearerToken"], url, "GET", None)
        limit = aiohttp.ClientTimeout(total=None)
        answer = await api.call_api("GET", api.configuration.host + url, headers, _request_timeout=limit)
        with suppress(aiohttp.ClientError):
            async for line in answer.response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise SystemExit(f"the watch of {path} failed: {event['object'].get('message')}")
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield event


class Coordinators:
    """All coordinators of a namespace."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.numbers: dict[str, tuple[str, int]] = {}
        """Job and number, by address."""
        self.workers: dict[str, set[str]] = {}
        """Uids of a job's workers that run."""
        self.gates: dict[str, Gate] = {}
        self.began = time.time()

    async def follow(self) -> None:
        async for event in watch(self.client, POD.path(self.namespace), f"{naming.MANAGED_BY}={naming.FIELD_MANAGER}"):
            pod = event["object"]
            meta, status = pod["metadata"], pod.get("status", {})
            labels, name = meta["labels"], meta["labels"][naming.JOB_NAME]
            gone = event["type"] == "DELETED" or status.get("phase") != "Running"
            if labels[naming.ROLE] == naming.COORDINATOR:
                if not gone and status.get("podIP"):
                    self.numbers[status["podIP"]] = name, int(meta["name"].rsplit("-", 1)[1])
            elif gone:
                self.workers.setdefault(name, set()).discard(meta["uid"])
            else:
                self.workers.setdefault(name, set()).add(meta["uid"])

    async def gate(self, job: str) -> Gate:
        if job not in self.gates:
            uid = (await self.client.get(JOB, self.namespace, job))["metadata"]["uid"]
            secret = await self.client.get(SECRET, self.namespace, naming.token_secret(job, uid))
            self.gates[job] = Gate(b64decode(secret["data"]["token"]).decode())
        return self.gates[job]

    async def answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        if address not in self.numbers:
            return web.Response(status=404)
        job, number = self.numbers[address]
        gate = await self.gate(job)
        admitted = gate.admits(request.headers.get("Authorization", ""), request.method, request.path)
        if admitted is None:
            return web.Response(status=401, headers={"WWW-Authenticate": gate.challenge()})
        said = {
            "number": number,
            "state": "running",
            "step": int(time.time() - self.began),
            "loss": random.random(),
            "members": [{"id": uid, "name": uid, "step": 1, "joined": 1} for uid in sorted(self.workers.get(job, ()))],
            "metrics": {"val/accuracy": random.random(), "val/loss": random.random()},
        }
        body = json.dumps(said).encode()
        return web.Response(body=body, headers={"Authentication-Info": admitted.answer(200, body)})


async def serve(namespace: str) -> None:
    client = await Client.connect("adaptrain-bench")
    coordinators = Coordinators(client, namespace)
    print(coordinators.began, flush=True)
    app = web.Application()
    app.router.add_get("/progress", coordinators.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", HTTP_PORT, backlog=4096).start()
    await coordinators.follow()


async def finished(client: Client, namespace: str, count: int) -> None:
    """Jobs that ended before."""
    done = "2026-01-01T00:00:00Z"
    condition = {"type": "Complete", "status": "True", "reason": "TrainingComplete", "message": "done"}
    status = {"phase": "Succeeded", "completionTime": done, "conditions": [{**condition, "lastTransitionTime": done}]}

    async def make(number: int) -> None:
        manifest = {"apiVersion": naming.API_VERSION, "kind": JOB.name, "spec": spec()}
        await client.create(JOB, namespace, {**manifest, "metadata": {"name": f"ended-{number}"}})
        await client.patch_status(JOB, namespace, f"ended-{number}", {"status": status})

    await bounded(make(number) for number in range(count))


class Jobs:
    """What the statuses say, and since when."""

    def __init__(self) -> None:
        self.phases: dict[str, tuple[str, float]] = {}
        self.steps: dict[str, tuple[int, float]] = {}
        self.created: dict[str, float] = {}
        """When a worker of a job was made last."""

    async def follow_jobs(self, client: Client, namespace: str) -> None:
        async for event in watch(client, JOB.path(namespace)):
            name, status = event["object"]["metadata"]["name"], event["object"].get("status", {})
            now = time.monotonic()
            if self.phases.get(name, ("", 0))[0] != status.get("phase"):
                self.phases[name] = status.get("phase", ""), now
            self.steps[name] = status.get("step") or 0, now

    async def follow_pods(self, client: Client, namespace: str) -> None:
        async for event in watch(client, POD.path(namespace), f"{naming.ROLE}={naming.WORKER}"):
            if event["type"] == "ADDED":
                self.created[event["object"]["metadata"]["labels"][naming.JOB_NAME]] = time.monotonic()

    def running(self) -> int:
        return sum(phase == "Running" for phase, _ in self.phases.values())


async def until(check: Any, seconds: float) -> float:
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > seconds:
            return float("inf")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def cpu(pid: int) -> float:
    """Processor time so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def replaced(client: Client, namespace: str, jobs: Jobs, name: str) -> float:
    """Seconds from a worker's deletion to its successor."""
    pods = [pod async for pod, _ in client.list(POD, namespace, f"{naming.JOB_NAME}={name},{naming.ROLE}=worker")]
    began = time.monotonic()
    await client.delete(POD, namespace, pods[0]["metadata"]["name"], pods[0]["metadata"]["uid"], 0)
    await until(lambda: jobs.created.get(name, 0.0) > began, 60)
    return jobs.created.get(name, float("inf")) - began


async def told(client: Client, namespace: str, jobs: Jobs, name: str) -> float:
    """Seconds until a phase is told: a job is suspended."""
    path = JOB.path(namespace, name)
    began = time.monotonic()
    patch = {"spec": {"suspend": True}}
    await client._request("PATCH", JOB, path, body=patch, content_type="application/merge-patch+json")
    await until(lambda: jobs.phases[name][0] == "Suspended" and jobs.phases[name][1] > began, 60)
    return jobs.phases[name][1] - began


def route(verb: str) -> None:
    """Make simulated pods' addresses this machine's, or no longer."""
    subprocess.run(["ip", "route", verb, "local", SIMULATED_PODS, "dev", "lo"], check=True)


def start_coordinators(namespace: str) -> subprocess.Popen[str]:
    serving = [sys.executable, "-m", "bench.fleet", "--serve", namespace]
    return subprocess.Popen(serving, stdout=subprocess.PIPE, text=True)


async def measure(arguments: argparse.Namespace) -> bool:
    client = await Client.connect("adaptrain-bench")
    namespace = await make_namespace(client)
    route("replace")
    log = Path(os.environ.get("TMPDIR", "/tmp")) / "adaptrain-bench-fleet.log"
    coordinators = start_coordinators(namespace)
    jobs, process, tasks = Jobs(), None, []
    try:
        await finished(client, namespace, arguments.finished)
        process = start(namespace, arguments.port, log)
        await until_leading(arguments.port)
        tasks = [asyncio.create_task(one(client, namespace)) for one in (jobs.follow_jobs, jobs.follow_pods)]
        took = await operated(client, namespace, arguments.jobs)
        assert coordinators.stdout is not None
        began = float(coordinators.stdout.readline())
        if await until(lambda: jobs.running() >= arguments.jobs, 300) == float("inf"):
            raise SystemExit(f"only {jobs.running()} of {arguments.jobs} jobs are Running (log: {log})")
        print(f"pods of {arguments.jobs} jobs run after {took:.1f} s, and all jobs are Running", flush=True)
        await asyncio.sleep(arguments.settle)
        writes, spent, since = own_writes(await scrape(arguments.port)), cpu(process.pid), time.monotonic()
        ages: list[float] = []
        while time.monotonic() - since < arguments.seconds:
            await asyncio.sleep(1)
            step = int(time.time() - began)
            ages += [step - jobs.steps[f"job-{number}"][0] for number in range(arguments.jobs)]
        seconds = time.monotonic() - since
        writes = (own_writes(await scrape(arguments.port)) - writes) / seconds
        cores = (cpu(process.pid) - spent) / seconds
        names = random.sample([f"job-{number}" for number in range(arguments.jobs)], arguments.deleted)
        successors = sorted([await replaced(client, namespace, jobs, name) for name in names])
        phases = sorted([await told(client, namespace, jobs, name) for name in names])
        peak = memory(process.pid, "VmHWM")
    finally:
        for task in tasks:
            task.cancel()
        if process is not None:
            process.terminate()
            process.wait(30)
        coordinators.kill()
        route("del")
        await remove_namespace(client, namespace)
        await client.close()
    ages.sort()
    oldest = ages[int(len(ages) * 0.99)]
    last = int(arguments.deleted * 0.99)
    print(
        f"{arguments.jobs} jobs train, {arguments.finished} have ended: {writes:.1f} writes/s, {cores:.2f} cores,"
        f" at most {peak:.0f} MB; a deleted worker's successor after {successors[last]:.2f} s (p99), a suspended job's"
        f" phase after {phases[last]:.2f} s; progress is {oldest:.0f} s old (p99)",
        flush=True,
    )
    ok = writes <= WRITES and cores <= CORES and peak <= MEGABYTES and successors[last] <= SUCCESSOR
    ok = ok and phases[last] <= TOLD if arguments.jobs >= 1000 else oldest <= AGE and successors[last] <= SUCCESSOR
    line = {"name": "fleet", "value": round(cores, 3), "unit": "cores", "writes": round(writes, 1), "rss": round(peak)}
    print(json.dumps(line | {"successor": round(successors[last], 2), "age": oldest, "ok": ok}))
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--finished", type=int, default=3000)
    parser.add_argument("--deleted", type=int, default=30, help="workers that are deleted, and jobs suspended")
    parser.add_argument("--nodes", type=int, default=50, help="simulated nodes (CLUSTER=local)")
    parser.add_argument("--port", type=int, default=18092, help="the operator's own HTTP port")
    parser.add_argument("--settle", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
        return 0
    if os.environ.get("CLUSTER", "local") == "local":
        simulate(arguments.nodes)
    return 0 if asyncio.run(measure(arguments)) else 1


if __name__ == "__main__":
    sys.exit(main())
