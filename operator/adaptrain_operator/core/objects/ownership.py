"""Whose an object is, whether it is as its owner wants it, and what to say of one that is another's.

Nothing is written that the job's or search's uid does not control: a name alone proves nothing, since anybody may have
used it before.
"""

from typing import Any

from adaptrain_api.training.job import KIND, TrainingJobSpec
from pydantic import ValidationError

from adaptrain_operator.core.objects.owned import contained
from adaptrain_operator.core.observed import Object

TAKEN = "NameTaken"
"""Reason of a condition: an object of a needed name is not this job's or search's."""
LEAVING = "NameNotFree"
"""Reason of a condition: an object of a needed name is about to be removed."""

ALLOCATED = frozenset(
    {
        "clusterIP",
        "clusterIPs",
        "internalTrafficPolicy",
        "ipFamilies",
        "ipFamilyPolicy",
        "sessionAffinity",
    }
)
"""Fields of a Service that the API server fills in."""


def controller(obj: Object) -> Object | None:
    """The reference to an object's controller."""
    owners = obj["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def controlled(obj: Object, uid: str) -> bool:
    """Whether an object's controller has this uid."""
    found = controller(obj)
    return found is not None and found["uid"] == uid


def verdict(wanted: Object, found: Object) -> tuple[str, str] | None:
    """Why an object may not be written, as the reason of a condition and a sentence with the remedy; None: it may.

    Args:
        wanted: the object to make, with the reference to its controller.
        found: the object of its name that there is.
    """
    ours, theirs = controller(wanted), controller(found)
    assert ours is not None
    what = f'{wanted["kind"]} "{wanted["metadata"]["name"]}"'
    if theirs is not None and theirs["uid"] == ours["uid"]:
        if "deletionTimestamp" not in found["metadata"]:
            return None
        return LEAVING, f"{what} is being deleted: it is made again as soon as it is gone"
    if theirs is None:
        whose = f"was not made by this {_word(ours)}"
    elif earlier(ours, theirs):
        return LEAVING, (
            f"{what} is left of an earlier {_word(ours)} of this name, and waits for the garbage collector: delete it"
            " if it stays"
        )
    else:
        whose = f'is controlled by {theirs.get("kind")} "{theirs.get("name")}"'
    return TAKEN, f"{what} {whose}, and is left as it is: remove or rename it, or give the {_word(ours)} another name"


def earlier(ours: Object, theirs: Object) -> bool:
    """Whether a controller is gone: it had the kind and the name of ours, which only one object at a time can have."""
    same = all(theirs.get(field) == ours[field] for field in ("kind", "name"))
    group = str(theirs.get("apiVersion", "")).partition("/")[0]
    return same and group == ours["apiVersion"].partition("/")[0] and theirs["uid"] != ours["uid"]


def _word(reference: Object) -> str:
    return "job" if reference["kind"] == KIND else "search"


def right(wanted: Object, found: Object | None) -> bool:
    """Whether an object is as it is wanted: what the API server fills in doesn't matter, what people add does.

    Labels and annotations may be more than ours: others put theirs there.
    """
    if found is not None and wanted["kind"] == "Secret":
        return True  # immutable, and nothing selects it
    if found is None or not contained(_identity(wanted), _identity(found)):
        return False
    if wanted["kind"] == KIND:
        return _same_spec(wanted["spec"], found["spec"])
    given = wanted.keys() - {"apiVersion", "kind", "metadata", "spec"}
    if any(wanted[name] != found.get(name) for name in given):
        return False
    spec, there = wanted.get("spec", {}), found.get("spec") or {}
    return all(spec.get(name) == there.get(name) for name in spec.keys() | (there.keys() - ALLOCATED))


def merged(wanted: Object, found: Object) -> Object:
    """An object of ours as it should be, to replace the one that was found: of that version, or not at all."""
    meta, ours = found["metadata"], wanted["metadata"]
    kept = {name: value for name, value in (found.get("spec") or {}).items() if name in ALLOCATED}
    more = {name: {**(meta.get(name) or {}), **ours[name]} for name in ("labels", "annotations") if name in ours}
    # What we don't give at all is not ours: a ServiceAccount's secrets, a job's status.
    rest = {name: value for name, value in found.items() if name not in ("metadata", "spec")}
    spec = {"spec": {**kept, **wanted["spec"]}} if "spec" in wanted else {}
    return {**rest, **wanted, **spec, "metadata": {**meta, **more}}


def _identity(obj: Object) -> Object:
    meta = obj["metadata"]
    return {name: meta.get(name) or {} for name in ("labels", "annotations")} | {"name": meta["name"]}


def _same_spec(wanted: Any, found: Any) -> bool:
    """Whether two specs of jobs mean the same, however much of the defaults is written down in one of them."""
    try:
        same: bool = TrainingJobSpec.model_validate(wanted) == TrainingJobSpec.model_validate(found)
    except ValidationError:
        return contained(wanted, found)
    return same
