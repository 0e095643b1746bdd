"""What the watches and listings said, kept as small as decisions allow.

Three writers race for it: watches, listings, and the answers to our own writes. The resource version orders them: an
older state never replaces a newer one, and an object that was deleted never comes back, since its uid is remembered.
So a decision always sees our own last write, which is what keeps it from making anything twice.
"""

import json
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from adaptrain_operator import clock
from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Node, Pod
from adaptrain_operator.core.sightings import sighted
from adaptrain_operator.kube.kinds import CHILDREN, JOB, NODE, POD, SEARCH, Kind

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a job."""

REMEMBERED = 20000
SUCCEEDED = "Succeeded"
SHORT = 40
"""Characters of a word that many objects have, such as a phase or a reason."""


class _Entry:
    __slots__ = ("job", "owner", "uid", "value", "version")

    def __init__(self, uid: str, version: int, job: Key | None, owner: str | None, value: Any) -> None:
        self.uid, self.version, self.job, self.owner, self.value = uid, version, job, owner, value


class Cache:
    """Objects by kind, namespace and name, and by the job that they belong to."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, _Entry]] = {kind.name: {} for kind in (JOB, SEARCH, POD, NODE, *CHILDREN)}
        self._of_job: dict[Key, set[tuple[str, Key]]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self.sees_nodes = False

    def put(self, kind: Kind, obj: Object) -> set[Key]:
        """Take in a state; the jobs that may have to be decided anew, none if we knew it."""
        meta = obj["metadata"]
        key, uid, version = _key(meta), meta["uid"], int(meta.get("resourceVersion") or 0)
        if uid in self._deleted:
            return set()
        known = self._objects[kind.name].get(key)
        if known is not None and known.version >= version:
            return set()
        value = _trim(kind, obj)
        if kind is POD:
            before = known.value[1] if known is not None else None
            value = value[0], sighted(value[1], before, clock.now())
        if kind is NODE and known is not None and known.value == value:
            known.version = version
            return set()
        job = key if kind is JOB else None if kind is SEARCH else _job(meta)
        self._objects[kind.name][key] = _Entry(uid, version, job, _owner(meta), value)
        if job is not None and kind is not JOB:
            self._of_job.setdefault(job, set()).add((kind.name, key))
        if kind is NODE:
            return set() if known is None else self._jobs_on(meta["name"])
        return set() if job is None else {job}

    def restore(self, kind: Kind, obj: Object) -> set[Key]:
        """Take in what the API server just answered of an object, though a watch said that it is gone.

        To a watch that selects by labels, one whose labels are changed is gone.
        """
        if "deletionTimestamp" not in obj["metadata"]:
            self._deleted.pop(obj["metadata"]["uid"], None)
        return self.put(kind, obj)

    def _jobs_on(self, node: str) -> set[Key]:
        pods = self._objects[POD.name].values()
        return {entry.job for entry in pods if entry.job is not None and entry.value[1].node == node}

    def drop(self, kind: Kind, obj: Object) -> set[Key]:
        """Forget an object that is gone; the jobs concerned."""
        meta = obj["metadata"]
        self._remember(meta["uid"])
        known = self._objects[kind.name].get(_key(meta))
        if known is None or known.uid != meta["uid"]:
            return set()
        job = self._remove(kind.name, _key(meta))
        return set() if job is None else {job}

    def gone(self, kind: Kind, key: Key, uid: str) -> set[Key]:
        """The same for an object of which we know no more than that it is gone."""
        return self.drop(kind, {"metadata": {"namespace": key[0], "name": key[1], "uid": uid}})

    def keep_only(self, kind: Kind, keys: set[Key], version: int, namespaces: Iterable[str]) -> set[Key]:
        """After a listing, drop what it lacks, unless that is newer than the listing; the jobs concerned."""
        within = set(namespaces)
        touched: set[Key] = set()
        for key, entry in list(self._objects[kind.name].items()):
            if key in keys or entry.version > version or (within and key[0] not in within):
                continue
            self._remember(entry.uid)
            job = self._remove(kind.name, key)
            if job is not None:
                touched.add(job)
        return touched

    def job(self, key: Key) -> Object | None:
        entry = self._objects[JOB.name].get(key)
        return None if entry is None else _unpacked(entry.value)

    def search(self, key: Key) -> Object | None:
        entry = self._objects[SEARCH.name].get(key)
        return None if entry is None else entry.value

    def searches(self) -> list[Key]:
        return list(self._objects[SEARCH.name])

    def jobs(self) -> list[Key]:
        return list(self._objects[JOB.name])

    def named(self, namespace: str, prefix: str) -> list[str]:
        """The names of a namespace's jobs that begin so."""
        return [name for where, name in self._objects[JOB.name] if where == namespace and name.startswith(prefix)]

    def search_of(self, job: Key) -> Key | None:
        """The search of that namespace that a job says it is of."""
        found = self.job(job)
        name = None if found is None else (found["metadata"].get("labels") or {}).get(naming.SEARCH_NAME)
        search = (job[0], name or "")
        return search if search in self._objects[SEARCH.name] else None

    def phases(self) -> dict[str, int]:
        """How many jobs are in each phase."""
        counts = dict.fromkeys(("Pending", "Running", "Suspended", "Succeeded", "Failed"), 0)
        for entry in self._objects[JOB.name].values():
            packed = isinstance(entry.value, bytes)
            phase = SUCCEEDED if packed else (entry.value.get("status") or {}).get("phase") or "Pending"
            counts[phase] = counts.get(phase, 0) + 1
        return counts

    def unsuccessful(self) -> Iterator[Object]:
        """The jobs that have not succeeded, as the API server has them."""
        values = (entry.value for entry in self._objects[JOB.name].values())
        return (value for value in values if not isinstance(value, bytes))

    def pods(self, key: Key, uid: str) -> list[tuple[str, Pod]]:
        """The pods that a job of this uid owns, with their role."""
        return [entry.value for entry in self._children(key, uid, {POD.name})]

    def children(self, key: Key, uid: str) -> dict[tuple[str, str], Object]:
        """Its watched children of fixed names, by kind and name."""
        names = {kind.name for kind in CHILDREN}
        found = (_unpacked(entry.value) for entry in self._children(key, uid, names))
        return {(child["kind"], child["metadata"]["name"]): child for child in found}

    def nodes(self) -> dict[str, Node] | None:
        if not self.sees_nodes:
            return None
        return {key[1]: entry.value for key, entry in self._objects[NODE.name].items()}

    def _children(self, key: Key, uid: str, kinds: set[str]) -> list[_Entry]:
        found = (self._objects[kind].get(name) for kind, name in self._of_job.get(key, ()) if kind in kinds)
        return [entry for entry in found if entry is not None and entry.owner == uid]

    def _remove(self, kind: str, key: Key) -> Key | None:
        entry = self._objects[kind].pop(key)
        if entry.job is not None and kind != JOB.name:
            children = self._of_job.get(entry.job)
            if children is not None:
                children.discard((kind, key))
                if not children:
                    del self._of_job[entry.job]
        return entry.job

    def _remember(self, uid: str) -> None:
        self._deleted[uid] = None
        while len(self._deleted) > REMEMBERED:
            self._deleted.popitem(last=False)


def _key(meta: Object) -> Key:
    return meta.get("namespace") or "", meta["name"]


def _job(meta: Object) -> Key | None:
    name = naming.job_of({"metadata": meta})
    return None if name is None else (meta.get("namespace") or "", name)


def _owner(meta: Object) -> str | None:
    owners = [owner["uid"] for owner in meta.get("ownerReferences") or [] if owner.get("controller")]
    return owners[0] if owners else None


_KEPT = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")


def _trim(kind: Kind, obj: Object) -> Any:
    """Only what decisions read: a listing of thousands of pods must not stay in memory as it came."""
    if kind is POD:
        return naming.role(obj), Pod.read(obj)
    if kind is NODE:
        return Node.read(obj)
    meta = {name: value for name, value in obj["metadata"].items() if name in _KEPT}
    meta |= {name: obj["metadata"][name] for name in ("labels", "ownerReferences") if name in obj["metadata"]}
    given = (obj["metadata"].get("annotations") or {}).get(naming.GIVEN)
    meta |= {} if given is None else {"annotations": {naming.GIVEN: given}}
    if kind in (JOB, SEARCH):
        kept = {"metadata": meta, "spec": obj.get("spec") or {}, "status": obj.get("status") or {}}
        return _packed(kept) if kind is JOB and kept["status"].get("phase") == SUCCEEDED else _shared(kept)
    # Items of a list come without their kind.
    group = kind.api.removeprefix("/apis/").removeprefix("/api/")
    return _packed({"apiVersion": group, "kind": kind.name, "metadata": meta, "spec": obj.get("spec") or {}})


def _packed(value: Object) -> bytes:
    """What is seldom looked at, in a fifth of the memory."""
    return json.dumps(value, separators=(",", ":")).encode()


def _unpacked(value: Object | bytes) -> Object:
    found: Object = json.loads(value) if isinstance(value, bytes) else value
    return found


def _shared(value: Any) -> Any:
    """The same, with one copy of each field's name and short word for all objects."""
    if isinstance(value, dict):
        return {sys.intern(name): _shared(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shared(item) for item in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= SHORT else value
