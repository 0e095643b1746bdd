"""Parts of a job's pods: their users, environment and volumes. All of it passes the ``restricted`` Pod Security level,
except for what the administrator allows."""

from typing import Any

from adaptrain_api.training.checkpoints import CheckpointVolume, SecretKey
from adaptrain_api.training.containers import InitContainer
from adaptrain_api.training.job import TrainingJobSpec, dump
from adaptrain_api.training.script import GitSource, Script

from adaptrain_operator.core import naming
from adaptrain_operator.core.defaults import Defaults
from adaptrain_operator.core.objects.owned import contained
from adaptrain_operator.core.objects.quantities import sized
from adaptrain_operator.core.observed import Job, Object

USER = 10001
JOB_DIR, TOKEN_DIR, CHECKPOINT_DIR = "/adaptrain/job", "/adaptrain/token", "/adaptrain/checkpoint"
SOURCE_DIR, WEIGHTS_DIR = "/adaptrain/source", "/adaptrain/weights"
KEY_DIR = "/adaptrain/checkpoint-key"
TERMINATION_LOG = "/dev/termination-log"
"""Kubernetes' default, which any user may write even where the root file system is read-only."""


WORK_DIR, PACKAGES_DIR, CACHE_DIR = "/adaptrain/work", "/adaptrain/packages", "/adaptrain/package-cache"
SCRATCH: Object = {"sizeLimit": "10Gi"}
"""Of folders on the node's disk: who writes more is evicted, rather than the node's other pods."""
SMALL: Object = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
"""Resources of our init containers where the worker has none; the pod's share is the larger, not their sum."""


def pod_security(job: Job, defaults: Defaults, root: bool = False) -> Object:
    """Who the processes of a pod are, as the job says, else as the administrator says.

    Args:
        root: whether they may be root, where that is allowed: no process of ours needs it.
    """
    given = job.spec.workers.security_context
    users = {} if given is None else dump(given)
    users.pop("capabilities", None)
    if not root and (users.get("runAsUser") == 0 or users.get("runAsNonRoot") is False):
        users = {key: value for key, value in users.items() if key not in ("runAsUser", "runAsNonRoot")}
    if users.get("runAsUser") == 0:
        users["runAsNonRoot"] = False
    own = {} if defaults.assigned_user else {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    if users.get("runAsNonRoot") is False:
        own = {key: value for key, value in own.items() if key == "fsGroup"}
    return {
        "runAsNonRoot": True,
        **own,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **{key: value for key, value in users.items() if value != []},
    }


def container_rules(job: Job, add: list[str] | None = None) -> Object:
    """What holds for each container; ``add`` are capabilities that it gets."""
    return {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], **present(add=add)},
        },
        **present(imagePullPolicy=job.spec.image_pull_policy),
    }


def common_env() -> dict[str, Any]:
    return {
        "ADAPTRAIN_JOB_FILE": f"{JOB_DIR}/job.json",
        "ADAPTRAIN_TOKEN_FILE": f"{TOKEN_DIR}/token",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        # The user may be any: an image knows no name for most of them, and torch asks for one.
        "USER": "adaptrain",
    }


def volumes(job: Job) -> list[Object]:
    return [
        {"name": "adaptrain-job", "configMap": {"name": naming.config_map(job.name)}},
        {
            "name": "adaptrain-token",
            "secret": {"secretName": naming.token_secret(job.name, job.uid), "defaultMode": 0o440},
        },
        {"name": "adaptrain-tmp", "emptyDir": {}},
    ]


def mounts() -> list[Object]:
    return [
        {"name": "adaptrain-job", "mountPath": JOB_DIR, "readOnly": True},
        {"name": "adaptrain-token", "mountPath": TOKEN_DIR, "readOnly": True},
        {"name": "adaptrain-tmp", "mountPath": "/tmp"},
    ]


def environment(variables: dict[str, Any]) -> list[Object]:
    return [
        {"name": name, "value": value} if isinstance(value, str) else {**value, "name": name}
        for name, value in variables.items()
    ]


def pod_field(path: str) -> Object:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def present(**fields: Any) -> Object:
    return {name: value for name, value in fields.items() if value}


def mount_checkpoints(volume: CheckpointVolume, volumes: list[Object], mounts: list[Object]) -> None:
    volumes.append({"name": "adaptrain-checkpoint", "persistentVolumeClaim": dump(volume.persistent_volume_claim)})
    mounts.append({"name": "adaptrain-checkpoint", "mountPath": CHECKPOINT_DIR})


def mount_key(key: SecretKey, volumes: list[Object], mounts: list[Object]) -> None:
    """What seals the checkpoints, as one file."""
    secret = {"secretName": key.name, "items": [{"key": key.key, "path": "key"}], "defaultMode": 0o440}
    volumes.append({"name": "adaptrain-key", "secret": secret})
    mounts.append({"name": "adaptrain-key", "mountPath": KEY_DIR, "readOnly": True})


def mount_weights(volume: CheckpointVolume, volumes: list[Object], mounts: list[Object]) -> None:
    """Read-only."""
    name = claim_volume("adaptrain-weights", volume, volumes)
    mounts.append({"name": name, "mountPath": WEIGHTS_DIR, "readOnly": True})


def claim_volume(name: str, volume: CheckpointVolume, volumes: list[Object]) -> str:
    """The name of a claim's volume, made if there is none: a pod with two volumes of one claim may never start."""
    claim = {"persistentVolumeClaim": dump(volume.persistent_volume_claim)}
    found: str | None = next((one["name"] for one in volumes if contained(claim, one)), None)
    if found is None:
        volumes.append({"name": name, **claim})
    return found or name


def fetching(job: Job, git: GitSource, image: str, commit: str | None, defaults: Defaults) -> Object:
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
        "env": environment(env),
        "volumeMounts": [
            {"name": "adaptrain-source", "mountPath": SOURCE_DIR},
            {"name": "adaptrain-tmp", "mountPath": "/tmp"},
        ],
        "resources": sized(job.spec.workers.resources, defaults.workers or SMALL, defaults.bounds),
        **container_rules(job),
    }


def installing(job: Job, script: Script, image: str, defaults: Defaults, volumes: list[Object]) -> Object:
    """Installs the script's packages, with the worker's environment: an index may be named in it.

    Args:
        volumes: of the pod; one for the cache is added.
    """
    workers = job.spec.workers
    env: dict[str, Any] = {
        "ADAPTRAIN_PACKAGES": "\n".join(script.packages),
        "ADAPTRAIN_PACKAGES_DIR": PACKAGES_DIR,
        "ADAPTRAIN_TERMINATION_LOG": TERMINATION_LOG,
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
    }
    held = [{"name": "adaptrain-packages", "mountPath": PACKAGES_DIR}, {"name": "adaptrain-tmp", "mountPath": "/tmp"}]
    if script.package_cache is not None:
        env["ADAPTRAIN_PACKAGE_CACHE"] = CACHE_DIR
        held.append({"name": claim_volume("adaptrain-cache", script.package_cache, volumes), "mountPath": CACHE_DIR})
    return {
        "name": naming.PACKAGES,
        "image": image,
        "command": ["adaptrain", "packages"],
        "env": environment({**env, **{variable.name: dump(variable) for variable in workers.env}}),
        "volumeMounts": held + [dump(mount) for mount in workers.volume_mounts],
        "resources": sized(workers.resources, defaults.workers or SMALL, defaults.bounds),
        **present(envFrom=[dump(one) for one in workers.env_from]),
        **container_rules(job),
    }


def mount_files(spec: TrainingJobSpec, volumes: list[Object], mounts: list[Object]) -> dict[str, str]:
    """What a user's code finds in its pod, and where it may write beside itself; the variables that tell."""
    env: dict[str, str] = {}
    source, script = spec.source, spec.script
    if source is not None:
        files: Object = {"emptyDir": SCRATCH} if source.config_map is None else {"configMap": dump(source.config_map)}
        volumes.append({"name": "adaptrain-source", **files})
        read_only = {} if source.config_map is None else {"readOnly": True}
        mounts.append({"name": "adaptrain-source", "mountPath": SOURCE_DIR, **read_only})
        env["ADAPTRAIN_SOURCE_DIR"] = SOURCE_DIR
    if (source is not None or script is not None) and (source is None or source.config_map is not None):
        # A ConfigMap and an image are read-only: the code runs in a copy.
        volumes.append({"name": "adaptrain-work", "emptyDir": SCRATCH})
        mounts.append({"name": "adaptrain-work", "mountPath": WORK_DIR})
        env["ADAPTRAIN_WORK_DIR"] = WORK_DIR
    if script is not None and script.packages:
        volumes.append({"name": "adaptrain-packages", "emptyDir": SCRATCH})
        mounts.append({"name": "adaptrain-packages", "mountPath": PACKAGES_DIR, "readOnly": True})
        env["ADAPTRAIN_PACKAGES_DIR"] = PACKAGES_DIR
    return env


def before_worker(job: Job, container: InitContainer, image: str, defaults: Defaults) -> Object:
    """An init container of the user's, under the rules that hold for the worker. Its root file system may be written:
    an image of somebody else's may need it."""
    rules = container_rules(job)
    rules["securityContext"]["readOnlyRootFilesystem"] = False
    return {
        "name": container.name,
        "image": container.image or image,
        "env": environment({variable.name: dump(variable) for variable in container.env}),
        "resources": sized(
            container.resources or job.spec.workers.resources, defaults.workers or SMALL, defaults.bounds
        ),
        "volumeMounts": [dump(mount) for mount in container.volume_mounts],
        **present(
            command=list(container.command),
            args=list(container.args),
            workingDir=container.working_dir,
            envFrom=[dump(one) for one in container.env_from],
            restartPolicy=container.restart_policy,
        ),
        **rules,
    }
