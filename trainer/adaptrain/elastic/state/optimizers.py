"""An optimizer's state, whatever optimizer it is: tensors by name, and the rest as JSON, from which a worker that joins
makes the same.

Nothing is assumed of an update. What an optimizer keeps comes to be in its own first steps, as under plain torch, and
a worker that has taken none gets it from one that has: which parameters have a state, of which shapes and types, every
number in it and in the parameter groups, and the attributes of the optimizer that steps change.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

Part = Callable[[torch.Tensor], torch.Tensor]
Whole = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PLAIN = (bool, int, float, str, type(None))
TENSOR = "tensor"


class Unsupported(Exception):
    """A value can't be sent to another worker."""


def nested(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer, and those that it keeps in its attributes: a wrapper's state is in what it wraps."""
    found = [optimizer]
    for one in found:
        for value in vars(one).values():
            several = value if isinstance(value, list | tuple) else [value]
            found += [other for other in several if isinstance(other, Optimizer) and other not in found]
    return found


class OptimizerState:
    """The live state of an optimizer over ``parameters``, whose places in that list are part of the names.

    Args:
        part: this process's part of a parameter or of a tensor like it.
        whole: what the optimizer keeps for such a part, given the parameter.
        groups: whether learning rates and whatever else the parameter groups say are part of it, since a script may
            change them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        part: Part = lambda t: t,
        whole: Whole = lambda t, _: t,
        groups: bool = True,
    ) -> None:
        self._parameters = list(parameters)
        self._places = {id(p): place for place, p in enumerate(self._parameters)}
        self._part = part
        self._whole = whole
        self._with_groups = groups
        self._optimizers = nested(optimizer)
        self._began = [self._attributes(one) for one in self._optimizers]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of it, by a stable name. They are the live ones, or this process's parts of them."""
        return self._described()[1]

    def state_dict(self) -> dict[str, Any]:
        """The rest of it, and what its tensors are like.

        Raises:
            Unsupported: it keeps something that can't be sent.
        """
        return {"optimizers": self._described()[0]}

    def room(self, said: dict[str, Any], device: str | None = None) -> dict[str, torch.Tensor]:
        """Memory for the tensors of which ``state_dict`` says this, on a device: by default where they belong.

        Raises:
            Unsupported: this is not of such an optimizer over such parameters.
        """
        try:
            return self._room(said, device)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Unsupported(f"its optimizer's state can't be read: {error}") from error

    def _room(self, said: dict[str, Any], device: str | None) -> dict[str, torch.Tensor]:
        there, here = [str(one["kind"]) for one in said["optimizers"]], [type(o).__name__ for o in self._optimizers]
        if there != here:
            raise Unsupported(f"its optimizer is {' of '.join(there)}, and here it is {' of '.join(here)}")
        if any(
            key >= len(self._parameters) for one in said["optimizers"] for key, _ in one["state"] if key != str(key)
        ):
            raise Unsupported("its optimizer has more parameters")
        made: dict[str, torch.Tensor] = {}
        for name, (kind, shape, where), owner in _leaves(said["optimizers"]):
            dtype = getattr(torch, kind)
            like = self._part(self._parameters[owner].detach()) if owner is not None else None
            place = like.device if like is not None and like.device.type == where else torch.device(where)
            if shape is None and like is not None:
                made[name] = torch.empty_like(like, dtype=dtype, device=device or place)
            else:
                made[name] = torch.empty(shape or [], dtype=dtype, device=device or place)
        return made

    def owner(self, name: str) -> int | None:
        """Place of the parameter to whose state a tensor belongs."""
        _, _, rest = name.partition("optimizer.")
        key = rest.split(".")[1 if rest.startswith("inner") else 0] if rest else ""
        return int(key) if key.isdigit() else None

    @torch.no_grad()
    def load(self, said: dict[str, Any], tensors: dict[str, torch.Tensor], groups: bool = True) -> None:
        """Take over what another one said, and its ``tensors``, which are this one's from now on.

        Args:
            groups: also learning rates and whatever else the parameter groups say.
        """
        for number, (optimizer, one) in enumerate(zip(self._optimizers, said["optimizers"], strict=True)):
            state: Any = optimizer.state
            kept = dict(state)
            state.clear()
            for key, packed in one["state"]:
                of = self._parameters[key] if isinstance(key, int) else key
                name = _name(number, key)
                state[of] = self._unpack(packed, name, tensors, kept.get(of), of)
            if not groups:
                continue
            for place, (group, packed) in enumerate(zip(optimizer.param_groups, one["groups"], strict=False)):
                for key, value in packed.items():
                    group[key] = self._unpack(value, _name(number, f"groups.{place}.{key}"), tensors, group.get(key))
            for key, value in one["own"].items():
                had = vars(optimizer).get(key)
                setattr(optimizer, key, self._unpack(value, _name(number, f"own.{key}"), tensors, had))

    def _described(self) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        tensors: dict[str, torch.Tensor] = {}
        said = []
        for number, optimizer in enumerate(self._optimizers):
            states = []
            for of, values in optimizer.state.items():
                key = self._places[id(of)] if isinstance(of, torch.Tensor) else of
                states.append([key, self._pack(values, _name(number, key), tensors, of)])
            own = {
                key: self._pack(vars(optimizer)[key], _name(number, f"own.{key}"), tensors)
                for key, value in self._attributes(optimizer).items()
                if value != self._began[number].get(key)
            }
            groups = self._groups(number, optimizer, tensors) if self._with_groups else []
            said.append({"kind": type(optimizer).__name__, "state": states, "groups": groups, "own": own})
        return said, tensors

    def _groups(self, number: int, optimizer: Optimizer, tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        for place, group in enumerate(optimizer.param_groups):
            groups.append({})
            for key, value in group.items():
                if key not in ("params", "param_names") and _sendable(value):
                    groups[-1][key] = self._pack(value, _name(number, f"groups.{place}.{key}"), tensors)
        return groups

    def _attributes(self, optimizer: Optimizer) -> dict[str, Any]:
        """Those that may be part of its state, as they are now."""
        found = {}
        for key, value in vars(optimizer).items():
            if key not in ("defaults", "state", "param_groups") and _sendable(value):
                tensors: dict[str, torch.Tensor] = {}
                said = self._pack(value, key, tensors)
                found[key] = said, [t.tolist() for t in tensors.values()]
        return found

    def _pack(self, value: Any, name: str, tensors: dict[str, torch.Tensor], of: Any = None) -> Any:
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided:
                raise Unsupported(f"{name} is a sparse tensor")
            t = self._part(value.detach())
            tensors[name] = t
            alike = isinstance(of, torch.Tensor) and value.shape == of.shape and value.ndim > 0
            return {TENSOR: [_kind(t), None if alike else list(t.shape), t.device.type]}
        if type(value) in PLAIN:
            return value
        if type(value) in (list, tuple):
            many = [self._pack(one, f"{name}.{place}", tensors, of) for place, one in enumerate(value)]
            return {type(value).__name__: many}
        if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
            return {"dict": [[key, self._pack(one, f"{name}.{key}", tensors, of)] for key, one in value.items()]}
        if type(value) is random.Random:
            return {"random": self._pack(value.getstate(), name, tensors)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        raise Unsupported(f"{name} is a {type(value).__name__}")

    def _unpack(self, said: Any, name: str, tensors: dict[str, torch.Tensor], had: Any = None, of: Any = None) -> Any:
        """A value as it was packed; a tensor is written into the one that was there, if that is of the same kind."""
        if not isinstance(said, dict):
            return said
        ((kind, value),) = said.items()
        match kind:
            case "tensor":
                t = tensors[name]
                if isinstance(had, torch.Tensor):
                    mine = self._part(had.detach())
                    if (mine.shape, mine.dtype) == (t.shape, t.dtype):
                        mine.copy_(t)
                        return had
                # Not where a checkpoint was read, but where the optimizer keeps it.
                t = t.to(torch.device(value[2]) if not isinstance(of, torch.Tensor) or value[2] == "cpu" else of.device)
                return self._whole(t, of) if isinstance(of, torch.Tensor) and value[1] is None else t
            case "list" | "tuple":
                many = [
                    self._unpack(one, f"{name}.{place}", tensors, _at(had, place), of)
                    for place, one in enumerate(value)
                ]
                return many if kind == "list" else tuple(many)
            case "dict":
                filled = {k: self._unpack(one, f"{name}.{k}", tensors, _at(had, k), of) for k, one in value}
                if type(had) is not dict and isinstance(had, dict):  # such as a defaultdict
                    had.clear()
                    had.update(filled)
                    return had
                return filled
            case "random":
                generator = had if isinstance(had, random.Random) else random.Random()
                generator.setstate(self._unpack(value, name, tensors))
                return generator
            case "dtype":
                return getattr(torch, value)
        raise Unsupported(f"{name} is a {kind}, which this release does not know")


def _leaves(said: list[dict[str, Any]]) -> Iterator[tuple[str, list[Any], int | None]]:
    """Name and description of each tensor, and the place of the parameter that it belongs to."""
    for number, one in enumerate(said):
        for key, packed in one["state"]:
            yield from _under(packed, _name(number, key), key if isinstance(key, int) else None)
        for place, group in enumerate(one["groups"]):
            for key, value in group.items():
                yield from _under(value, _name(number, f"groups.{place}.{key}"), None)
        for key, value in one["own"].items():
            yield from _under(value, _name(number, f"own.{key}"), None)


def _under(said: Any, name: str, owner: int | None) -> Iterator[tuple[str, list[Any], int | None]]:
    if not isinstance(said, dict):
        return
    ((kind, value),) = said.items()
    if kind == TENSOR:
        yield name, value, owner
    elif kind in ("list", "tuple", "dict"):
        for key, one in value if kind == "dict" else enumerate(value):
            yield from _under(one, f"{name}.{key}", owner)


def _name(number: int, key: Any) -> str:
    """Of an optimizer's own state as ever; of one that it wraps with that one's number."""
    return f"optimizer.{key}" if number == 0 else f"optimizer.inner{number}.{key}"


def _sendable(value: Any) -> bool:
    """Whether a value can be part of a state. What can't be must be the same at every step, as the check at the start
    makes sure."""
    if isinstance(value, list | tuple):
        return all(map(_sendable, value))
    if isinstance(value, dict):
        return all(type(key) in (str, int) and _sendable(one) for key, one in value.items())
    return isinstance(value, torch.Tensor | torch.dtype) or type(value) in (*PLAIN, random.Random)


def _kind(t: torch.Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _at(value: Any, key: Any) -> Any:
    """What is at a place of a container, if there is one."""
    if isinstance(value, dict):
        return value.get(key)
    return value[key] if isinstance(value, list | tuple) and isinstance(key, int) and key < len(value) else None
