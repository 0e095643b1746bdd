"""Parsers of what others wrote: progress, objects of the API server, checkpoints, specs."""

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from adaptrain.elastic.checkpoint import file_format
from adaptrain.elastic.state import history
from adaptrain.elastic.storage.directory import Directory
from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.manifest import documents
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.search.status import ArchitectureSearchStatus
from adaptrain_api.training.job import AdaptiveTrainingJob, TrainingJobSpec, dump
from adaptrain_operator.core.search.observed import Search, SearchObserved
from adaptrain_operator.core.search.reconcile import decide_search
from pydantic import ValidationError

from tests.faults.hostile.mutate import TEXTS, mutated, places
from tests.faults.hostile.outcome import Outcome, peak_megabytes
from tests.support.operator_world import World

WARM = 50
"""Tries until memory is compared: what is imported and cached is there by then."""


def progress(seconds: float, rng: random.Random) -> Outcome:
    """What a coordinator says, and the operator's decision with it."""
    world = World()
    world.settle()
    assert world.progress is not None
    change = {"time": 1.0, "epoch": 1, "message": "joined", "count": 1, "stall": 0.5}
    said = json.loads(world.progress.model_dump_json(by_alias=True)) | {
        "metrics": {"val/loss": 0.5},
        "recentChanges": [change],
        "result": {"outcome": "completed", "step": 3, "epoch": 1, "metrics": {"val/loss": 0.5}},
        "silent": [{"id": "u", "name": "n", "since": 1.0}],
    }

    def attempt(outcome: Outcome) -> None:
        with outcome.attempt(ValidationError):
            world.progress = Progress.model_validate_json(json.dumps(mutated(rng, said)))
            plan = world.decide()
            assert len(json.dumps(dump(plan.status), allow_nan=False)) < 100_000, "a status of 100 KB"

    return _for(seconds, "progress", attempt)


def objects(seconds: float, rng: random.Random) -> Outcome:
    """Pods whose texts a tenant or a webhook chose."""
    world = World()
    world.settle()
    texts = [text for text in TEXTS if "\ud800" not in text]  # the API server's JSON has none

    def attempt(outcome: Outcome) -> None:
        before = world.pods
        world.pods = json.loads(json.dumps(before))
        for pod in world.pods.values():
            for part in ("labels", "annotations"):
                for key in list(pod["metadata"].get(part) or {}):
                    if rng.random() < 0.2 and key != "adaptrain.io/role":
                        pod["metadata"][part][key] = rng.choice(texts)
            for status in pod["status"].get("containerStatuses", []):
                if rng.random() < 0.3:
                    ended = {"exitCode": rng.choice([0, 1, 64, 137, -1, 2**31 - 1]), "reason": rng.choice(texts)}
                    message = rng.choice([*texts, json.dumps(mutated(rng, {"outcome": "failed", "step": 1}))])
                    pod["status"]["phase"] = rng.choice(["Failed", "Succeeded", "Running"])
                    status["state"] = {"terminated": ended | {"message": message}}
        with outcome.attempt():
            plan = world.decide()
            json.dumps([plan.create, plan.apply, dump(plan.status)])
        world.pods = before

    return _for(seconds, "objects", attempt)


def checkpoints(seconds: float, rng: random.Random) -> Outcome:
    """A checkpoint's files, of which the manifest's own digest is right."""
    tensors = {"model.weight": torch.arange(12.0).reshape(3, 4), "optimizer.step": torch.tensor(3)}
    counters = {"step": 3, "epoch": 1, "cursor": 0, "metrics": {"val/loss": 0.5}}
    with tempfile.TemporaryDirectory() as folder:
        storage = Directory(Path(folder))
        at = storage.begin("step-3.1")
        rows = "".join(f'{{"step": {step}, "loss": 0.5, "batch_size": 64}}\n' for step in (1, 2, 3))
        good = file_format.write(storage, at, tensors, counters, rows=rows)
        files = {path.name: path.read_bytes() for path in (Path(folder) / at).iterdir() if path.is_file()}

        def attempt(outcome: Outcome) -> None:
            manifest = json.loads(good)
            changed = dict(files)
            if rng.random() < 0.5:
                manifest = mutated(rng, manifest)
            else:
                name = rng.choice(list(files))
                data = bytearray(files[name])
                for _ in range(rng.randint(1, 4)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                changed[name] = bytes(data[: rng.randint(0, len(data))] + rng.randbytes(rng.randint(0, 50)))
                if name == history.FILE:  # with a digest that is right
                    manifest["files"][name] = file_format._told(file_format._Digest(False, changed[name]))
            for name, data in changed.items():
                (Path(folder) / at / name).write_bytes(data)
            (Path(folder) / at / file_format.MANIFEST).write_bytes(_signed(manifest))
            with outcome.attempt(file_format.Corrupt, file_format.Mismatch, OSError):
                file_format.read(storage, at, lambda _: tensors)
            with outcome.attempt(file_format.Corrupt, file_format.Mismatch, OSError):
                file_format.verify(storage, at)
            with outcome.attempt(file_format.Corrupt, file_format.Mismatch, OSError):
                file_format.rows_of(storage, at)

        return _for(seconds, "checkpoints", attempt)


def _signed(manifest: Any) -> bytes:
    if not isinstance(manifest, dict):
        return json.dumps(manifest).encode()
    text = json.dumps(manifest | {"xxh3_128": file_format.UNSIGNED}).encode()
    return text.replace(file_format.UNSIGNED.encode(), file_format._digest(text).encode(), 1)


def specs(seconds: float, rng: random.Random) -> Outcome:
    """Manifests, and the decisions for those that are accepted."""
    known = [
        found
        for path in sorted(Path("examples").rglob("*.yaml"))
        for found in documents(path.read_text())
        if isinstance(found, dict) and found.get("kind") in ("AdaptiveTrainingJob", "ArchitectureSearch")
    ]
    parts = [part for one in known for part in (one, *_inner(one))]

    def attempt(outcome: Outcome) -> None:
        manifest = mutated(rng, rng.choice(known), ("spec",))
        if rng.random() < 0.2:
            manifest["spec"][rng.choice(list(manifest["spec"]) or ["workers"])] = rng.choice(parts)
        with outcome.attempt(ValidationError):
            if manifest.get("kind") == "ArchitectureSearch":
                found = ArchitectureSearch.model_validate(manifest)
                search = Search("s", "ns", "uid", 1, False, found.spec, ArchitectureSearchStatus())
                json.dumps(decide_search(search, SearchObserved({}), 1.8e9).apply)
            else:
                job = AdaptiveTrainingJob.model_validate(manifest)
                world = World()
                world.spec = TrainingJobSpec.model_validate(json.loads(json.dumps(dump(job)["spec"])))
                for _ in range(3):
                    plan = world.decide()
                    json.dumps([plan.create, plan.apply, dump(plan.status)])
                    world.carry_out(plan)
                    world.start()
                    world.answer()
                    world.now += 1

    return _for(seconds, "specs", attempt)


def _inner(value: dict[str, Any]) -> list[Any]:
    found = []
    for at in places(value):
        inner: Any = value
        for key in at:
            inner = inner[key]
        if isinstance(inner, dict | list):
            found.append(inner)
    return found


def _for(seconds: float, target: str, attempt: Callable[[Outcome], None]) -> Outcome:
    outcome, until, begun = Outcome(target), time.monotonic() + seconds, 0.0
    while time.monotonic() < until:
        attempt(outcome)
        if outcome.tries <= WARM:
            begun = peak_megabytes()
    outcome.grown = peak_megabytes() - begun
    return outcome
