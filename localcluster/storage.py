"""Gives every volume claim of the default class a folder that all nodes share.

``python -m localcluster.storage STATE`` runs beside the control plane. The nodes see the host's files, so a folder of
the host is a ReadWriteMany volume. Reconciles what it lists twice a second, which the API server answers from memory.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from localcluster.config import WORKER_UID, Paths
from localcluster.kube import Kube, KubeError, Object

PROVISIONER = "adaptrain.io/shared-folder"
_POLL = 0.5
_CLAIMS = "/api/v1/persistentvolumeclaims?resourceVersion=0"
_VOLUMES = "/api/v1/persistentvolumes"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses?resourceVersion=0"


def main() -> None:
    paths = Paths(Path(sys.argv[1]))
    kube = Kube(paths)
    trouble = ""
    while True:
        try:
            reconcile(kube, paths.volumes)
            trouble = ""
        except (KubeError, OSError) as error:
            # The API server may be restarting. Tell once, try on.
            if str(error) != trouble:
                trouble = str(error)
                print(trouble, flush=True)
        time.sleep(_POLL)


def reconcile(kube: Kube, folder: Path) -> None:
    classes = {item["metadata"]["name"] for item in kube.items(_CLASSES) if item["provisioner"] == PROVISIONER}
    for claim in kube.items(_CLAIMS):
        pending = claim["status"].get("phase") == "Pending" and not claim["spec"].get("volumeName")
        if pending and claim["spec"].get("storageClassName") in classes:
            provision(kube, folder, claim)
    for volume in kube.items(f"{_VOLUMES}?resourceVersion=0"):
        ours = volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
        released = volume["status"].get("phase") == "Released"
        if ours and released and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
            shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
            kube.delete(f"{_VOLUMES}/{volume['metadata']['name']}")
            print(f"deleted {volume['metadata']['name']}", flush=True)


def provision(kube: Kube, folder: Path, claim: Object) -> None:
    """Makes the folder, then the volume already bound to its claim. Named after the claim, both can be made again."""
    meta = claim["metadata"]
    name = f"pvc-{meta['uid']}"
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    shutil.chown(path, WORKER_UID, WORKER_UID)
    # Kubernetes sets no owner (fsGroup) on such volumes: open to any user that a pod may run as.
    path.chmod(0o777)
    kube.create(
        _VOLUMES,
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
            "spec": {
                "capacity": claim["spec"]["resources"]["requests"],
                "accessModes": claim["spec"]["accessModes"],
                "volumeMode": "Filesystem",
                "storageClassName": claim["spec"]["storageClassName"],
                "persistentVolumeReclaimPolicy": "Delete",
                "hostPath": {"path": str(path), "type": "Directory"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": meta["namespace"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                },
            },
        },
    )
    print(f"made {name} for {meta['namespace']}/{meta['name']}", flush=True)


if __name__ == "__main__":
    main()
