"""Builders of a job's pods. Everything here runs under the ``restricted`` Pod Security level."""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from adaptrain_api.base import Model
from adaptrain_api.checkpoints import CheckpointVolume, checkpoint_folder, checkpoint_uri
from adaptrain_api.pool import leaves_weights
from adaptrain_api.progress import CONTROL_PORT, HTTP_PORT, WORKER_METRICS_PORT
from adaptrain_api.search import HEAVY
from adaptrain_api.sources import GitSource
from adaptrain_api.training import dump

from adaptrain_operator.core import naming
from adaptrain_operator.core.children import contained, metadata
from adaptrain_operator.core.observed import Job, Object

USER = 10001
JOB_DIR, TOKEN_DIR, CHECKPOINT_DIR = "/adaptrain/job", "/adaptrain/token", "/adaptrain/checkpoint"
SOURCE_DIR, WEIGHTS_DIR = "/adaptrain/source", "/adaptrain/weights"
HOSTNAME = "kubernetes.io/hostname"
TERMINATION_LOG = "/dev/termination-log"
"""Kubernetes' default, which any user may write even where the root file system is read-only."""


def template_hash(job: Job) -> str:
    """A hash of the user's fields that make a worker pod.

    Only what the user gave counts: fields at their default are left out, and neither the default image nor anything
    else that comes with the operator is part of it. So upgrading the operator restarts nobody's training.
    """
    spec = job.spec
    given: Object = {
        "image": spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "imagePullSecrets": [_given(secret) for secret in spec.image_pull_secrets],
        "workers": _given(spec.workers, exclude={"min", "max", "replicas"}),
        "checkpoint": None if spec.checkpoint is None else _given(spec.checkpoint),
    }
    text = json.dumps({key: value for key, value in given.items() if value}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _given(model: Model, exclude: set[str] | None = None) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, exclude=exclude)


def coordinator_pod(job: Job, number: int, image: str, left_node: str | None, avoided: Iterable[str]) -> Object:
    """The small pod that knows who is a member. It goes where the workers may go, rather not where the last one was."""
    spec = job.spec
    pod = _pod(job, naming.coordinator_pod(job.name, number), naming.COORDINATOR)
    pod["metadata"]["labels"][naming.COORDINATOR_NUMBER] = str(number)
    avoided = sorted(avoided)
    pod["metadata"]["annotations"] = {
        naming.DEFAULT_CONTAINER: naming.COORDINATOR,
        naming.TEMPLATE_HASH: coordinator_hash(job),
        **({naming.AVOIDED_NODES: ",".join(avoided)} if avoided else {}),
    }
    affinity = _avoid({}, avoided)
    if left_node is not None:
        preferred = {"matchExpressions": [{"key": HOSTNAME, "operator": "NotIn", "values": [left_node]}]}
        affinity.setdefault("nodeAffinity", {})["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100, "preference": preferred}
        ]
    volumes, mounts = _volumes(job), _mounts()
    storage: dict[str, Any] = {}
    if spec.search is not None:
        # What the algorithms compute would take all cores of its node.
        storage = {"ADAPTRAIN_STORAGE_DIR": "/tmp/study", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if spec.checkpoint is not None and spec.checkpoint.volume is not None:
            _mount_checkpoints(spec.checkpoint.volume, volumes, mounts)
            storage["ADAPTRAIN_STORAGE_DIR"] = f"{CHECKPOINT_DIR}/{checkpoint_folder(job.namespace, job.name)}"
        if (secret := (spec.search["spec"].get("storage") or {}).get("postgresql")) is not None:
            held = {"secretKeyRef": {"name": secret["name"], "key": "url"}}
            storage["ADAPTRAIN_STORAGE_URL"] = {"valueFrom": held}
    pod["spec"] |= {
        "terminationGracePeriodSeconds": 2,
        "containers": [
            {
                "name": naming.COORDINATOR,
                "image": image,
                "command": ["adaptrain", "coordinator"],
                "env": _env({**_common_env(), "ADAPTRAIN_COORDINATOR_NUMBER": str(number), **storage}),
                "ports": [
                    {"name": "control", "containerPort": CONTROL_PORT},
                    {"name": "http", "containerPort": HTTP_PORT},
                ],
                "readinessProbe": {
                    "httpGet": {"path": "/healthz", "port": "http"},
                    "periodSeconds": 1,
                    "timeoutSeconds": 2,
                    "failureThreshold": 5,
                },
                "resources": _coordinator_resources(job),
                "volumeMounts": mounts,
                **_container_rules(job),
            }
        ],
        "volumes": volumes,
        "tolerations": [dump(toleration) for toleration in spec.workers.tolerations] + _node_loss(10),
        **_present(
            nodeSelector=spec.workers.node_selector,
            affinity=affinity,
            priorityClassName=spec.workers.priority_class_name,
            imagePullSecrets=[dump(secret) for secret in spec.image_pull_secrets],
        ),
    }
    return pod


def _coordinator_resources(job: Job) -> Object:
    search = job.spec.search
    if search is None:
        requested, most = "128Mi", "256Mi"
    elif (search["spec"].get("algorithm") or {}).get("name") in HEAVY:
        requested, most = "768Mi", "2Gi"
    else:
        requested, most = "128Mi", "1Gi"
    return {"requests": {"cpu": "50m", "memory": requested}, "limits": {"memory": most}}


def coordinator_hash(job: Job) -> str:
    """A hash of the user's fields that make the coordinator."""
    given = [job.spec.image, job.spec.image_pull_policy, *([job.spec.search] if job.spec.search else [])]
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


def worker_pod(job: Job, number: int, image: str, avoided: Iterable[str], commit: str | None = None) -> Object:
    """One replica group of the training; ``commit`` is of its source, if that is known already."""
    spec, workers = job.spec, job.spec.workers
    avoided = sorted(avoided)
    pod = _pod(job, naming.worker_pod(job.name, number), naming.WORKER)
    own_labels = pod["metadata"]["labels"]
    pod["metadata"]["labels"] = {**(workers.labels or {}), **own_labels}
    pod["metadata"]["annotations"] = {
        **(workers.annotations or {}),
        naming.DEFAULT_CONTAINER: naming.WORKER,
        naming.TEMPLATE_HASH: template_hash(job),
        **({naming.AVOIDED_NODES: ",".join(avoided)} if avoided else {}),
    }
    env: dict[str, Any] = {
        **_common_env(),
        "ADAPTRAIN_COORDINATOR": f"{naming.coordinator_service(job.name)}.{job.namespace}.svc:{CONTROL_PORT}",
        "ADAPTRAIN_WORKER_ID": _field("metadata.uid"),
        "ADAPTRAIN_WORKER_NAME": _field("metadata.name"),
        "ADAPTRAIN_ADDRESS": _field("status.podIP"),
        "ADAPTRAIN_TERMINATION_LOG": TERMINATION_LOG,
        "OMP_NUM_THREADS": str(threads(job)),
        # Threads that spin while they wait eat a CPU limit and slow a pod thirtyfold.
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }
    volumes, mounts = _volumes(job), _mounts()
    volumes.append({"name": "adaptrain-shm", "emptyDir": {"medium": "Memory"}})
    mounts.append({"name": "adaptrain-shm", "mountPath": "/dev/shm"})
    env_from = list(workers.env_from)
    checkpoint = spec.checkpoint
    mounts_it = spec.search is None or leaves_weights(spec)
    if checkpoint is not None and checkpoint.volume is not None and mounts_it:
        _mount_checkpoints(checkpoint.volume, volumes, mounts)
        env["ADAPTRAIN_CHECKPOINT_DIR"] = f"{CHECKPOINT_DIR}/{checkpoint_folder(job.namespace, job.name)}"
    if (uri := checkpoint_uri(checkpoint, job.namespace, job.name)) is not None:
        env["ADAPTRAIN_CHECKPOINT_URI"] = uri
    if checkpoint is not None and checkpoint.secret_ref is not None:
        env_from.append({"secretRef": dump(checkpoint.secret_ref)})
    if spec.initial_weights is not None:
        _mount_weights(spec.initial_weights.volume, volumes, mounts)
        env["ADAPTRAIN_WEIGHTS_DIR"] = WEIGHTS_DIR
    source = spec.source
    if source is not None:
        held = {"emptyDir": {}} if source.config_map is None else {"configMap": dump(source.config_map)}
        volumes.append({"name": "adaptrain-source", **held})
        mounts.append({"name": "adaptrain-source", "mountPath": SOURCE_DIR, "readOnly": True})
        env["ADAPTRAIN_SOURCE_DIR"] = SOURCE_DIR
    taken = {mount.mount_path.rstrip("/") for mount in workers.volume_mounts}
    mounts = [mount for mount in mounts if mount["mountPath"] not in taken]
    mounted = {mount["name"] for mount in mounts}
    volumes = [volume for volume in volumes if volume["name"] in mounted]
    pod["spec"] |= {
        "terminationGracePeriodSeconds": workers.termination_grace_period_seconds,
        "containers": [
            {
                "name": naming.WORKER,
                "image": image,
                "command": ["adaptrain", "worker"],
                "env": _env({**env, **{variable.name: dump(variable) for variable in workers.env}}),
                "ports": [{"name": "metrics", "containerPort": WORKER_METRICS_PORT}],
                "volumeMounts": mounts + [dump(mount) for mount in workers.volume_mounts],
                **_present(
                    envFrom=env_from,
                    resources=None if workers.resources is None else dump(workers.resources),
                ),
                **_container_rules(job),
            }
        ],
        "volumes": volumes + list(workers.volumes),
        "tolerations": [dump(toleration) for toleration in workers.tolerations] + _node_loss(60),
        "topologySpreadConstraints": list(workers.topology_spread_constraints) or [_spread(job)],
        **_present(
            initContainers=[_fetching(job, source.git, image, commit)] if source is not None and source.git else None,
            nodeSelector=workers.node_selector,
            affinity=_avoid(workers.affinity or {}, avoided),
            priorityClassName=workers.priority_class_name,
            imagePullSecrets=[dump(secret) for secret in spec.image_pull_secrets],
        ),
    }
    return pod


def _mount_checkpoints(volume: CheckpointVolume, volumes: list[Object], mounts: list[Object]) -> None:
    volumes.append({"name": "adaptrain-checkpoint", "persistentVolumeClaim": dump(volume.persistent_volume_claim)})
    mounts.append({"name": "adaptrain-checkpoint", "mountPath": CHECKPOINT_DIR})


def _mount_weights(volume: CheckpointVolume, volumes: list[Object], mounts: list[Object]) -> None:
    """Read-only. A claim that is mounted already is the same volume: a pod with two of one claim may never start."""
    claim = {"persistentVolumeClaim": dump(volume.persistent_volume_claim)}
    name = next((one["name"] for one in volumes if contained(claim, one)), None)
    if name is None:
        name = "adaptrain-weights"
        volumes.append({"name": name, **claim})
    mounts.append({"name": name, "mountPath": WEIGHTS_DIR, "readOnly": True})


def _fetching(job: Job, git: GitSource, image: str, commit: str | None) -> Object:
    """Fetches the script's files; the credentials are its own, and the script never sees them."""
    env: dict[str, Any] = {
        "ADAPTRAIN_GIT_URL": git.url,
        "ADAPTRAIN_GIT_REF": commit or git.ref,
        "ADAPTRAIN_SOURCE_DIR": SOURCE_DIR,
        "ADAPTRAIN_TERMINATION_LOG": TERMINATION_LOG,
        "HOME": "/tmp",
    }
    if git.secret_ref is not None:
        for key in ("username", "password"):
            secret = {"name": git.secret_ref.name, "key": key, "optional": key == "username"}
            env[f"ADAPTRAIN_GIT_{key.upper()}"] = {"valueFrom": {"secretKeyRef": secret}}
    return {
        "name": naming.SOURCE,
        "image": image,
        "command": ["adaptrain", "source"],
        "env": _env(env),
        "volumeMounts": [
            {"name": "adaptrain-source", "mountPath": SOURCE_DIR},
            {"name": "adaptrain-tmp", "mountPath": "/tmp"},
        ],
        # The pod's share is the larger of this and the worker's, not their sum.
        **_present(resources=None if job.spec.workers.resources is None else dump(job.spec.workers.resources)),
        **_container_rules(job),
    }


def threads(job: Job) -> int:
    """Compute threads of each of a worker's processes: its CPU limit, else its request rounded up, else one."""
    resources = job.spec.workers.resources
    for given, rounding in (
        (resources and resources.limits, math.floor),
        (resources and resources.requests, math.ceil),
    ):
        if given and "cpu" in given:
            return max(1, rounding(cpus(str(given["cpu"]))) // job.spec.workers.processes_per_worker)
    return 1


def cpus(quantity: str) -> float:
    """A CPU quantity as a number: ``500m`` is 0.5."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)([0-9]*)", quantity)
    if match is None:
        return 1.0
    if match.group(3):
        return float(quantity)
    scale = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3}
    return float(match.group(1)) * scale.get(match.group(2), 1.0)


def _pod(job: Job, name: str, role: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(job, name, role),
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": naming.service_account(job.name),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        },
    }


def _container_rules(job: Job) -> Object:
    return {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **_present(imagePullPolicy=job.spec.image_pull_policy),
    }


def _common_env() -> dict[str, Any]:
    return {
        "ADAPTRAIN_JOB_FILE": f"{JOB_DIR}/job.json",
        "ADAPTRAIN_TOKEN_FILE": f"{TOKEN_DIR}/token",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
    }


def _volumes(job: Job) -> list[Object]:
    return [
        {"name": "adaptrain-job", "configMap": {"name": naming.config_map(job.name)}},
        {
            "name": "adaptrain-token",
            "secret": {"secretName": naming.token_secret(job.name, job.uid), "defaultMode": 0o440},
        },
        {"name": "adaptrain-tmp", "emptyDir": {}},
    ]


def _mounts() -> list[Object]:
    return [
        {"name": "adaptrain-job", "mountPath": JOB_DIR, "readOnly": True},
        {"name": "adaptrain-token", "mountPath": TOKEN_DIR, "readOnly": True},
        {"name": "adaptrain-tmp", "mountPath": "/tmp"},
    ]


def _env(variables: dict[str, Any]) -> list[Object]:
    return [
        {"name": name, "value": value} if isinstance(value, str) else {**value, "name": name}
        for name, value in variables.items()
    ]


def _field(path: str) -> Object:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def _present(**fields: Any) -> Object:
    return {name: value for name, value in fields.items() if value}


def _node_loss(seconds: int) -> list[Object]:
    """How long the control plane waits before it evicts from a lost node: a backstop, silence is noticed sooner."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for state in ("not-ready", "unreachable")
    ]


def _spread(job: Job) -> Object:
    """Over nodes, where there is a choice: losing one should not lose the job."""
    return {
        "maxSkew": 1,
        "topologyKey": HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": naming.selector(job.name, naming.WORKER)},
    }


def _avoid(affinity: Object, nodes: Iterable[str]) -> Object:
    """An affinity that also keeps away from some nodes. Terms are alternatives, so each one must say so."""
    nodes = sorted(nodes)
    if not nodes:
        return dict(affinity)
    unwanted = {"key": "metadata.name", "operator": "NotIn", "values": nodes}
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    # matchFields takes one value per requirement, so every node is a requirement of its own.
    fields = [{**unwanted, "values": [node]} for node in nodes]
    terms = [
        {**term, "matchFields": [*(term.get("matchFields") or []), *fields]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    return {**affinity, "nodeAffinity": node_affinity}
