"""The pydantic model accepts a job exactly when the API server does, and reads it as the server would store it.

Random jobs are drawn from the schema, spoiled or not, and sent as strict dry-run creates. To replay a disagreement or
to search further: ``ADAPTRAIN_FUZZ_SEED=7 ADAPTRAIN_FUZZ_COUNT=10000 pytest tests/cluster/test_crd_agreement.py``.
"""

import copy
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from adaptrain_api.base import dump
from adaptrain_api.crd import structural
from adaptrain_api.errors import explain
from adaptrain_api.training.job import AdaptiveTrainingJob, TrainingJobSpec
from pydantic import ValidationError
from pydantic.alias_generators import to_snake

SEED = int(os.environ.get("ADAPTRAIN_FUZZ_SEED", "1"))
COUNT = int(os.environ.get("ADAPTRAIN_FUZZ_COUNT", "1000"))

STRINGS = [
    *("", "a", "b", "A", "a-b", "a.b", "-a", "a-", "a_b", "a b", " a", "a\n", "\na", "1", "2.0", "true", "null", "~"),
    *("resnet", "mlp", "digits", "vgg", "pkg.mod:Net", "m:f", "m:", ":f", "m:f:g", "1m:f", "adamw", "supervised"),
    *("ADAPTRAIN_X", "ADAPTRAIN", "MASTER_PORT", "PET_X", "PATH", "my.var", "1X"),
    *("adaptrain-x", "adaptrain", "adaptrainx", "/adaptrain", "/adaptrain/x", "/adaptrainx"),
    *("/data", "/x/../y", "/x//y", "/x/.y", "/x/.", "x/y", "../x", "x/..", "x..y/z", "/"),
    *("500m", "4Gi", "1e3", "1E-3", "1.5", ".5", "5.", "-1", "+1", "1KiB", "1e", "Gi", "0x1", "1_000", "١", "½"),
    *("example.com/gpu", "nvidia.com/gpu", "a.b/c", "/c", "a/", "a/b/c", "A/b", "adaptrain.io/x"),
    *("app.kubernetes.io/name", "é", "naïve", "日本", "🙂", "a\u0000b", "a\u00a0", "a\u2028", "\ufeffa", "ſ", "K"),
    *("x" * 40, "x" * 41, "x" * 63, "x" * 64, "x" * 253, "x" * 254, "é" * 63, "🙂" * 64, "x" * 317, "x" * 318),
    *("a/" + "x" * 63, "a/" + "x" * 64, "x" * 253 + "/a", "x" * 254 + "/a", "1" * 64, "1" * 65),
    *("x" * 1024, "x" * 1025, "/" + "x" * 1023, "registry:5000/a@b"),
    *("https://a.b/c.git", "http://a", "https://u:p@a.b/c", "https://", "https://a b", "git@a.b:c", "https://é"),
    *("a==1", "timm[x]==1.0.2", "a==", "==1", "step-1.2", "a/step-0000000010.4294967297-ab", "step-1", "b/c/step-1.2"),
    *("Always", "Never", "Exists", "Equal", "NoExecute", "NoSchedule", "val/loss", "val/accuracy", "sgd"),
]
NUMBERS = [
    *(-1, 0, 1, 2, 3, 5, 10, 60, 100, 101, 999, 1000, 1001, 3600, 3601, 86400, 86401, 1048576, 1048577),
    *(2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30),
    *(-1.0, 0.0, -0.0, 1.0, 2.0, 3.0, 1000.0, 1e3, 0.5, 0.999, 1.5, 2.5, 1e-3, 1e-9),
    *(5e-324, 1e16, 1e30, 1e300, 1.9999999999, 2.0000000001, 2.00000001),
]
OTHERS = [None, True, False, [], {}, [None], [{}], [[]], {"": ""}, {"name": "a"}, {"name": None}, [1], ["a"]]


class Generator:
    """Draws jobs from the schema, so that a new field is covered without a change here."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.schema = structural(TrainingJobSpec)

    def job(self) -> dict[str, Any]:
        spec = self.value(self.schema)
        if self.draw.random() < 0.9:
            self.mend(spec)
        job = {
            "apiVersion": "adaptrain.io/v1alpha1",
            "kind": "AdaptiveTrainingJob",
            "metadata": {"name": "job" if self.draw.random() < 0.95 else self.draw.choice(STRINGS)},
            "spec": spec,
        }
        for _ in range(self.draw.choice([0, 0, 1, 1, 1, 1, 2, 3])):
            self.spoil(job)
        return job

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        draw = self.draw
        if "enum" in schema:
            return draw.choice(schema["enum"])
        if "x-kubernetes-int-or-string" in schema:
            quantity = re.compile(schema["pattern"].replace("$", r"\Z"))
            return draw.choice([0, 1, 2**40, *filter(quantity.search, STRINGS)])
        match schema.get("type"):
            case "integer" | "number":
                low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)
                low += bool(schema.get("exclusiveMinimum")) / 2
                high -= bool(schema.get("exclusiveMaximum")) / 2
                whole = schema["type"] == "integer"
                good = [n for n in NUMBERS if low <= n <= high and (not whole or isinstance(n, int))]
                return draw.choice([*good, int(high) if whole else high, int(low) if whole else low])
            case "boolean":
                return draw.random() < 0.5
            case "string":
                pattern = re.compile(schema.get("pattern", "").replace("$", r"\Z"))
                size = range(schema.get("minLength", 0), schema.get("maxLength", 10**6) + 1)
                return draw.choice([text for text in STRINGS if pattern.search(text) and len(text) in size])
            case "array":
                count = max(schema.get("minItems", 0), draw.choice([0, 1, 1, 2]))
                return [self.value(schema["items"], depth) for _ in range(min(count, schema.get("maxItems", count)))]
        found = {}
        if "x-kubernetes-preserve-unknown-fields" in schema and depth < 3:
            for _ in range(draw.choice([0, 1, 2])):
                choice = draw.choice([draw.choice(STRINGS), draw.choice(NUMBERS), copy.deepcopy(draw.choice(OTHERS))])
                found[draw.choice(STRINGS)] = choice
        for name, sub in schema.get("properties", {}).items():
            if name in schema.get("required", ()) or draw.random() < 0.35:
                found[name] = self.value(sub, depth)
        if "additionalProperties" in schema:
            for _ in range(draw.choice([0, 1, 2])):
                key = draw.choice(["cpu", "memory", "nvidia.com/gpu", "a", "a.b/c"]) if draw.random() < 0.9 else None
                found[key or draw.choice(STRINGS)] = self.value(schema["additionalProperties"])
        return found

    def mend(self, spec: dict[str, Any]) -> None:
        """Make it probable that the rules over several fields hold."""
        draw, own = self.draw, ("model", "data", "phases")
        if "search" in spec and draw.random() < 0.9:
            del spec["search"]
        if draw.random() < 0.2:
            for field in own:
                spec.pop(field, None)
            spec.setdefault("script", {"command": ["a"]})
            if "resumeArgs" not in spec["script"] or spec["script"].get("launcher") != "torchrun":
                for field in ("resumeArgs", "resumeFile"):
                    spec["script"].pop(field, None)
            if "packages" not in spec["script"]:
                spec["script"].pop("packageCache", None)
            if (source := spec["script"].get("source")) and len(source) == 2:
                source.pop(draw.choice(["configMap", "git"]))
        else:
            spec.pop("script", None)
            spec |= {field: self.value(self.schema["properties"][field]) for field in own if field not in spec}
            spec["model"]["name"] = draw.choice(["resnet", "mlp", "a.b:C"])
            spec["data"]["name"] = draw.choice(["digits", "a.b:C"])
        for name, phase in zip("ab", spec.get("phases", []), strict=False):
            phase["name"] = name
            if phase["type"] == "custom":
                phase.setdefault("custom", {})["name"] = "a.b:C"
            else:
                phase.pop("custom", None)
            phase["optimizer"]["name"] = "sgd"
            phase["stop"].setdefault(draw.choice(["epochs", "steps"]), 3)
            if "checkpoint" not in spec:
                phase.pop("nonFinite", None)
        if checkpoint := spec.get("checkpoint"):
            if draw.random() < 0.5:
                checkpoint.setdefault("volume", {"persistentVolumeClaim": {"claimName": "a"}})
                for field in ("uri", "secretRef"):
                    checkpoint.pop(field, None)
            else:
                spec.get("script", {}).pop("launcher", None)
                checkpoint.pop("volume", None)
                checkpoint["uri"] = draw.choice(["s3://bucket", "gs://a.bucket/with/a.prefix", "s3://bucket/"])
        workers = spec.get("workers", {})
        if workers:
            low, middle, high = sorted(draw.choice([1, 2, 3, 5, 1000]) for _ in range(3))
            workers.update({"min": low, "max": high})
            if spec.get("script", {"launcher": "torchrun"}).get("launcher") != "torchrun":
                workers["processesPerWorker"] = 1
            if "replicas" in workers:
                workers["replicas"] = middle
            workers["volumes"] = [{"name": name, "emptyDir": {}} for name in draw.sample(["a", "b", "data"], 2)]
            for key, item in (("volumeMounts", "mountPath"), ("env", "name")):
                workers[key] = list({entry[item]: entry for entry in workers.get(key, [])}.values())
            for mount in workers["volumeMounts"]:
                mount["name"] = workers["volumes"][0]["name"]
                mount.pop("subPath", None)
            for field in ("labels", "annotations"):
                if field in workers and draw.random() < 0.9:
                    workers[field] = {f"jobs.adaptrain.io/{key}": "a" for key in draw.sample(["a", "b", "c"], 2)}
            for containers in ([workers], workers.get("initContainers", [])):
                for container in containers:
                    for one in container.get("envFrom", []):
                        if len(one.keys() & {"configMapRef", "secretRef"}) != 1:
                            one.pop("secretRef", None)
                            one.setdefault("configMapRef", {"name": "a"})
                    for one in container.get("env", []):
                        one.pop("valueFrom", None)
            if draw.random() < 0.8:
                for field in ("securityContext", "initContainers", "hostNetwork", "serviceAccountName"):
                    workers.pop(field, None)
            for toleration in workers.get("tolerations", []):
                toleration.update({"key": "a", "effect": "NoExecute", "operator": "Equal"})

    def spoil(self, job: dict[str, Any]) -> None:
        draw = self.draw
        if not (places := list(_places(job["spec"]))):
            return
        holder, key = draw.choice(places)
        junk = copy.deepcopy(draw.choice([draw.choice(STRINGS), draw.choice(NUMBERS), draw.choice(OTHERS), None]))
        match draw.randrange(10):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(["unknown", "max_restarts", "node_selector", "Min", "", *STRINGS])] = junk
            case 2 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 3 if isinstance(holder[key], int | float):
                number = holder[key]
                holder[key] = draw.choice([float(number), str(number), number + 1, -number, bool(number)])
            case 4:
                holder[key] = draw.choice([[holder[key]], {"name": holder[key]}])
            case 5:
                holder[key] = None
            case 6 if isinstance(key, str) and to_snake(key) != key:
                holder[to_snake(key)] = holder.pop(key)
            case 7 if "workers" in job["spec"] and isinstance(job["spec"]["workers"], dict):
                bound = draw.choice(["min", "max", "replicas"])
                job["spec"]["workers"][bound] = draw.choice([1, 2, 3, 4, 5])
            case _:
                holder[key] = junk


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(entries):
        yield value, key
        yield from _places(item)


def _as_stored(value: Any) -> Any:
    # The API server reads an integer beyond 64 bits as a float, and writes it as an integer of another value.
    if isinstance(value, dict):
        return {key: _as_stored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_stored(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return float(value)
    return value


def test_the_model_and_the_api_server_agree(api: Callable[..., Any], jobs: str) -> None:
    generator = Generator(SEED)
    drawn = [generator.job() for _ in range(COUNT)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda job: api("POST", f"{jobs}?dryRun=All&fieldValidation=Strict", job), drawn))
    accepted, disagreements = 0, []
    for job, answer in zip(drawn, answers, strict=True):
        assert answer.status in (201, 400, 422), answer.body
        try:
            model = AdaptiveTrainingJob.model_validate(job)
        except ValidationError as error:
            if answer.ok:
                disagreements.append(f"only the API server accepts\n{json.dumps(job)}\n{explain(error)}")
            continue
        accepted += answer.ok
        if not answer.ok:
            disagreements.append(f"only the model accepts\n{json.dumps(job)}\n{answer.message}")
        elif _as_stored(dump(model)["spec"]) != _as_stored(answer.body["spec"]):
            disagreements.append(f"read otherwise\n{dump(model)['spec']}\n{answer.body['spec']}")
    print(f"seed {SEED}: {accepted} of {COUNT} jobs accepted")
    text = "\n\n".join(disagreements[:5])
    assert not disagreements, f"seed {SEED}: {len(disagreements)} of {COUNT} disagree\n{text}"
    assert 0.15 < accepted / COUNT < 0.85, f"seed {SEED}: {accepted} of {COUNT} accepted: the test is one-sided"
