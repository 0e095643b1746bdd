"""Builders of a job's pods. Everything here runs under the ``restricted`` Pod Security level, except for what the
administrator allows."""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

from adaptrain_api.base import given, manifest_of
from adaptrain_api.contracts.coordinator_api import CONTROL_PORT, HTTP_PORT, WORKER_METRICS_PORT
from adaptrain_api.search.job import HEAVY, ArchitectureSearch
from adaptrain_api.search.pool import leaves_weights
from adaptrain_api.training.checkpoints import checkpoint_folder, checkpoint_uri
from adaptrain_api.training.job import dump
from pydantic import ValidationError

from adaptrain_operator.core import naming
from adaptrain_operator.core.defaults import OURS, Defaults
from adaptrain_operator.core.objects import placement
from adaptrain_operator.core.objects.owned import metadata
from adaptrain_operator.core.objects.pod_parts import (
    CHECKPOINT_DIR,
    KEY_DIR,
    TERMINATION_LOG,
    WEIGHTS_DIR,
    before_worker,
    common_env,
    container_rules,
    environment,
    fetching,
    installing,
    mount_checkpoints,
    mount_files,
    mount_key,
    mount_weights,
    mounts,
    pod_field,
    pod_security,
    present,
    volumes,
)
from adaptrain_operator.core.objects.quantities import at_least, quantity, sized
from adaptrain_operator.core.observed import Job, Object


def template_hash(job: Job) -> str:
    """A hash of the user's fields that make a worker pod.

    Only what the user gave counts: fields at their default are left out, and neither the default image nor anything
    else that comes with the operator is part of it. So upgrading the operator restarts nobody's training.
    """
    return job.once("template", _template_hash)


def _template_hash(job: Job) -> str:
    spec = job.spec
    fields: Object = {
        "image": spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "imagePullSecrets": [given(secret) for secret in spec.image_pull_secrets],
        "workers": given(spec.workers, exclude={"min", "max", "replicas", "rolling_update"}),
        "checkpoint": None if spec.checkpoint is None else given(spec.checkpoint),
    }
    text = json.dumps({key: value for key, value in fields.items() if value}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def coordinator_pod(
    job: Job,
    number: int,
    image: str,
    left_node: str | None,
    avoided: Iterable[str],
    defaults: Defaults = OURS,
    one_node: bool = False,
) -> Object:
    """The small pod that knows who is a member. It goes where the workers may go, rather not where the last one was.

    Args:
        one_node: the pods that mount the checkpoint claim must share a node.
    """
    spec = job.spec
    pod = _pod(job, naming.coordinator_pod(job.name, number), naming.COORDINATOR)
    pod["spec"]["securityContext"] = pod_security(job, defaults)
    pod["metadata"]["labels"][naming.COORDINATOR_NUMBER] = str(number)
    avoided = sorted(avoided)
    pod["metadata"]["annotations"] = {
        naming.DEFAULT_CONTAINER: naming.COORDINATOR,
        naming.TEMPLATE_HASH: coordinator_hash(job),
        **({naming.AVOIDED_NODES: ",".join(avoided)} if avoided else {}),
    }
    affinity = placement.avoid({}, avoided)
    if left_node is not None:
        affinity = placement.rather_not(affinity, left_node)
    if one_node and spec.search is not None:
        affinity = placement.together(affinity, {naming.JOB_NAME: job.name})
    held, mounted = volumes(job), mounts()
    storage: dict[str, Any] = {}
    if spec.search is not None:
        # What the algorithms compute would take all cores of its node.
        storage = {"ADAPTRAIN_STORAGE_DIR": "/tmp/study", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if spec.checkpoint is not None and spec.checkpoint.volume is not None:
            mount_checkpoints(spec.checkpoint.volume, held, mounted)
            storage["ADAPTRAIN_STORAGE_DIR"] = f"{CHECKPOINT_DIR}/{checkpoint_folder(job.namespace, job.name)}"
        if (secret := spec.of_search("storage").get("postgresql")) is not None:
            key = {"secretKeyRef": {"name": secret["name"], "key": "url"}}
            storage["ADAPTRAIN_STORAGE_URL"] = {"valueFrom": key}
    pod["spec"] |= {
        "terminationGracePeriodSeconds": 2,
        "containers": [
            {
                "name": naming.COORDINATOR,
                "image": image,
                "command": ["adaptrain", "coordinator"],
                "env": environment({**common_env(), "ADAPTRAIN_COORDINATOR_NUMBER": str(number), **storage}),
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
                "resources": _coordinator_resources(job, defaults),
                "volumeMounts": mounted,
                **container_rules(job),
            }
        ],
        "volumes": held,
        "tolerations": _tolerations(job, defaults) + placement.node_loss(10),
        **present(
            nodeSelector=spec.workers.node_selector,
            affinity=affinity,
            priorityClassName=spec.workers.priority_class_name,
            schedulerName=spec.workers.scheduler_name,
            imagePullSecrets=[dump(secret) for secret in spec.image_pull_secrets],
        ),
    }
    return pod


def _coordinator_resources(job: Job, defaults: Defaults) -> Object:
    default = defaults.coordinator
    if job.spec.search is not None:
        heavy = job.spec.of_search("algorithm").get("name") in HEAVY
        requested, most = ("768Mi", "2Gi") if heavy else ("128Mi", "1Gi")
        default = at_least(default, {"requests": {"memory": requested}, "limits": {"memory": most}})
    own = job.spec.coordinator
    return sized(None if own is None else own.resources, default, defaults.bounds)


def _tolerations(job: Job, defaults: Defaults) -> list[Object]:
    listed = [dump(toleration) for toleration in job.spec.workers.tolerations]
    return listed + [one for one in defaults.tolerations if one not in listed]


def coordinator_hash(job: Job) -> str:
    """A hash of the user's fields that make the coordinator."""
    return job.once("coordinator", _coordinator_hash)


def _search(manifest: Object) -> Object:
    """What was given of a search, however much of the defaults is written down: another release writes other ones."""
    try:
        return manifest_of(ArchitectureSearch.model_validate(manifest))
    except ValidationError:
        return manifest


def _coordinator_hash(job: Job) -> str:
    spec = job.spec
    own = [given(spec.coordinator)] if spec.coordinator else []
    fields = [spec.image, spec.image_pull_policy, *([_search(spec.search)] if spec.search else []), *own]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def worker_pod(
    job: Job,
    number: int,
    image: str,
    avoided: Iterable[str],
    commit: str | None = None,
    defaults: Defaults = OURS,
    one_node: bool = False,
) -> Object:
    """One replica group of the training.

    Args:
        commit: of its source, if that is known already.
        one_node: the pods that mount the checkpoint claim must share a node.
    """
    spec, workers = job.spec, job.spec.workers
    avoided = sorted(avoided)
    pod = _pod(job, naming.worker_pod(job.name, number), naming.WORKER)
    pod["spec"]["securityContext"] = pod_security(job, defaults, root=True)
    own_labels = pod["metadata"]["labels"]
    pod["metadata"]["labels"] = {**(workers.labels or {}), **own_labels}
    pod["metadata"]["annotations"] = {
        **(workers.annotations or {}),
        naming.DEFAULT_CONTAINER: naming.WORKER,
        naming.TEMPLATE_HASH: template_hash(job),
        **({naming.AVOIDED_NODES: ",".join(avoided)} if avoided else {}),
    }
    env: dict[str, Any] = {
        **common_env(),
        "ADAPTRAIN_COORDINATOR": f"{naming.coordinator_service(job.name)}.{job.namespace}.svc:{CONTROL_PORT}",
        "ADAPTRAIN_WORKER_ID": pod_field("metadata.uid"),
        "ADAPTRAIN_WORKER_NAME": pod_field("metadata.name"),
        "ADAPTRAIN_ADDRESS": pod_field("status.podIP"),
        "ADAPTRAIN_TERMINATION_LOG": TERMINATION_LOG,
        "OMP_NUM_THREADS": str(threads(job, defaults)),
        # Threads that spin while they wait eat a CPU limit and slow a pod thirtyfold.
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }
    held, mounted = volumes(job), mounts()
    shared_memory = {"medium": "Memory", **present(sizeLimit=workers.shared_memory)}
    held.append({"name": "adaptrain-shm", "emptyDir": shared_memory})
    mounted.append({"name": "adaptrain-shm", "mountPath": "/dev/shm"})
    env_from = [dump(one) for one in workers.env_from]
    checkpoint = spec.checkpoint
    mounts_it = spec.search is None or leaves_weights(spec)
    if checkpoint is not None and checkpoint.volume is not None and mounts_it:
        mount_checkpoints(checkpoint.volume, held, mounted)
        env["ADAPTRAIN_CHECKPOINT_DIR"] = f"{CHECKPOINT_DIR}/{checkpoint_folder(job.namespace, job.name)}"
    if (uri := checkpoint_uri(checkpoint, job.namespace, job.name)) is not None:
        env["ADAPTRAIN_CHECKPOINT_URI"] = uri
    if checkpoint is not None and checkpoint.secret_ref is not None:
        env_from.append({"secretRef": dump(checkpoint.secret_ref)})
    if checkpoint is not None and checkpoint.key is not None:
        mount_key(checkpoint.key, held, mounted)
        env["ADAPTRAIN_CHECKPOINT_KEY_FILE"] = f"{KEY_DIR}/key"
    if spec.initial_weights is not None:
        mount_weights(spec.initial_weights.volume, held, mounted)
        env["ADAPTRAIN_WEIGHTS_DIR"] = WEIGHTS_DIR
    env |= mount_files(spec, held, mounted)
    taken = {mount.mount_path.rstrip("/") for mount in workers.volume_mounts}
    mounted = [mount for mount in mounted if mount["mountPath"] not in taken]
    source, script = spec.source, spec.script
    init = [] if source is None or source.git is None else [fetching(job, source.git, image, commit, defaults)]
    if script is not None and script.packages:
        init.append(installing(job, script, image, defaults, held))
    init += [before_worker(job, container, image, defaults) for container in workers.init_containers]
    used = {mount["name"] for container in ({"volumeMounts": mounted}, *init) for mount in container["volumeMounts"]}
    affinity = placement.avoid(workers.affinity or {}, avoided)
    if one_node:
        labels = naming.selector(job.name, naming.WORKER) if spec.search is None else {naming.JOB_NAME: job.name}
        affinity = placement.together(affinity, labels)
    security = workers.security_context
    capabilities = None if security is None or security.capabilities is None else security.capabilities.add
    pod["spec"] |= {
        "terminationGracePeriodSeconds": workers.termination_grace_period_seconds,
        "containers": [
            {
                "name": naming.WORKER,
                "image": image,
                "command": ["adaptrain", "worker"],
                "env": environment({**env, **{variable.name: dump(variable) for variable in workers.env}}),
                "ports": [{"name": "metrics", "containerPort": WORKER_METRICS_PORT}],
                "volumeMounts": mounted + [dump(mount) for mount in workers.volume_mounts],
                **present(envFrom=env_from, resources=sized(workers.resources, defaults.workers, defaults.bounds)),
                **container_rules(job, capabilities),
            }
        ],
        "volumes": [volume for volume in held if volume["name"] in used] + [dump(one) for one in workers.volumes],
        "tolerations": _tolerations(job, defaults) + placement.node_loss(60),
        "topologySpreadConstraints": list(workers.topology_spread_constraints) or [placement.spread(job)],
        **present(
            initContainers=init,
            nodeSelector=workers.node_selector,
            affinity=affinity,
            priorityClassName=workers.priority_class_name,
            schedulerName=workers.scheduler_name,
            runtimeClassName=workers.runtime_class_name,
            serviceAccountName=workers.service_account_name,
            imagePullSecrets=[dump(secret) for secret in spec.image_pull_secrets],
        ),
        # With the node's network a pod would else ask the node's DNS, which knows no Service.
        **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if workers.host_network else {}),
    }
    return pod


def threads(job: Job, defaults: Defaults = OURS) -> int:
    """Compute threads of each of a worker's processes: its CPU limit, else its request rounded up, else one."""
    resources = sized(job.spec.workers.resources, defaults.workers, defaults.bounds)
    for part, rounding in (("limits", math.floor), ("requests", math.ceil)):
        if (given := resources.get(part, {}).get("cpu")) is not None:
            return max(1, rounding(quantity(given)) // job.spec.workers.processes_per_worker)
    return 1


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
        },
    }
