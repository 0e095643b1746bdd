"""YAML as kubectl reads it.

A manifest must mean the same to ``adaptrain run`` and to ``kubectl apply``, and PyYAML differs from kubectl where it
hurts: it takes ``1e-3`` for a string, ``12:30`` for a number and ``2026-01-01`` for a date.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_BOOLEANS = {
    spelling: value
    for words, value in (("y yes true on", True), ("n no false off", False))
    for word in words.split()
    for spelling in (word, word.capitalize(), word.upper())
}
_NULLS = {"", "~", "null", "Null", "NULL"}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_BASES = (16, 2, 8, 10)


def documents(text: str) -> list[Any]:
    """The YAML documents in a text, without empty ones.

    Raises:
        yaml.YAMLError: it is no YAML, or a mapping has the same key twice.
    """
    return [document for document in yaml.load_all(text, _Loader) if document is not None]


def plain(text: str) -> Any:
    """What a scalar without quotes means."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] in "+-.0123456789":
        plain = text.replace("_", "")
        if match := _INTEGER.fullmatch(plain):
            sign, *digits = match.groups()
            number = next(int(found, base) for found, base in zip(digits, _BASES, strict=True) if found)
            number = -number if sign == "-" else number
            if -(2**63) <= number < 2**64:
                return number
        if _FLOAT.fullmatch(plain):
            value = float(plain)
            # On its way to the API server it becomes JSON, written as Go does: 2.0 as 2.
            return int(value) if value.is_integer() and abs(value) < 1e21 else value
        if text.lstrip("+-").lower() in (".inf", ".nan"):
            return float(text.replace(".", "", 1))
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML with kubectl's idea of plain scalars and of keys."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return f"{_TAG}merge" if value == "<<" else "!plain"
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        return plain(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != f"{_TAG}merge":
                name = self._key(key)
                if name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{name!r} appears twice", key.start_mark)
                seen.add(name)
        self.flatten_mapping(node)
        return {self._key(key): self.construct_object(value, deep=deep) for key, value in node.value}

    def _key(self, node: yaml.Node) -> str:
        key = self.construct_object(node, deep=True)
        if isinstance(key, bool):
            return str(key).lower()
        if isinstance(key, str | int | float):
            return str(key)
        raise yaml.constructor.ConstructorError(None, None, "a key must be a string", node.start_mark)


_Loader.add_constructor("!plain", _Loader.construct_plain)
