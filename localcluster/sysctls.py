"""Kernel settings that a cluster changes, and their way back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from localcluster.errors import ClusterError

_PROC = Path("/proc/sys")
# What we set ourselves: pods' packets pass through the host, and every container runtime and watcher needs inotify.
_WANTED = {"net/ipv4/ip_forward": "1", "fs/inotify/max_user_instances": "1024"}
# What the kubelet sets on its own, on any machine.
_KUBELET = (
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


def _values() -> dict[str, str]:
    """The present values of all that may change: forwarding also flips settings of each interface."""
    per_interface = [
        path for name in ("forwarding", "accept_redirects") for path in _PROC.glob(f"net/ipv4/conf/*/{name}")
    ]
    names = [*_WANTED, *_KUBELET, *(str(path.relative_to(_PROC)) for path in sorted(per_interface))]
    values = {}
    for name in names:
        with contextlib.suppress(OSError):
            values[name] = (_PROC / name).read_text().strip()
    return values


def listing() -> dict[str, str]:
    """For comparison."""
    return _values()


def apply(record: Path) -> None:
    """Sets what a cluster needs; the first call records what was there before."""
    if not record.exists():
        record.write_text(json.dumps(_values(), indent=1))
    for name, value in _WANTED.items():
        if int((_PROC / name).read_text()) < int(value):
            try:
                (_PROC / name).write_text(value)
            except OSError as error:
                setting = name.replace("/", ".")
                raise ClusterError(
                    f"the kernel setting {setting} cannot be set to {value} ({error.strerror}), as in most containers: "
                    "use a real or virtual machine"
                ) from None


def restore(record: Path) -> None:
    """Puts everything back. ``ip_forward`` is first in the record, as it resets those of the interfaces."""
    if not record.exists():
        return
    for name, value in json.loads(record.read_text()).items():
        # An interface may be gone by now.
        with contextlib.suppress(OSError):
            if (_PROC / name).read_text().strip() != value:
                (_PROC / name).write_text(value)
    record.unlink()
