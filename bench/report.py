"""What every benchmark ends with: one line of JSON."""

import json
import sys


def emit(name: str, value: float, unit: str, peer: str, peer_value: float, ok: bool, **more: object) -> None:
    """Print the line and end the process: 0 if the bar is met, else 1. ``ratio`` is value / peer_value."""
    ratio = value / peer_value if peer_value else None
    line = {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "ok": ok,
    }
    print(json.dumps(line | more), flush=True)
    sys.exit(0 if ok else 1)
