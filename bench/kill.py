"""50 SIGKILLs among 3 workers, beside torchrun and torchft in the same run. Value: survivors' median stall, seconds.

torchft is judged as its program runs, and with its time-outs tuned; an eager one that waits for nobody is shown beside.
"""

import argparse
import math
import statistics

from bench import torchft_peer
from bench.report import emit
from bench.stalls import kills
from bench.torchrun_peer import kill_gaps


def shown(seconds: list[float]) -> list[float]:
    return [round(s, 3) for s in sorted(seconds)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--peer-kills", type=int, default=5)
    arguments = parser.parse_args()
    stalls, lost = kills(arguments.kills)
    print(f"stalls in s: {shown(stalls)}; workers lost besides: {lost}", flush=True)
    gaps = kill_gaps(arguments.peer_kills)
    print(f"torchrun, tuned: {shown(gaps)}", flush=True)
    found = {}
    for name in ("TUNED", "DEFAULTS", "EAGER"):
        one = found[name] = torchft_peer.kills(arguments.peer_kills, getattr(torchft_peer, name))
        print(f"torchft, {name.lower()}: {shown(one.stalls)}; survivors crashed: {one.crashed}", flush=True)
    value, worst, peer = statistics.median(stalls), max(stalls), statistics.median(gaps)
    # If all survivors crash with the victim each time, nobody goes on who could have stood still.
    torchft = {name: statistics.median(one.stalls) if one.stalls else math.inf for name, one in found.items()}
    whole = len(stalls) >= arguments.kills - 1 and lost == 0
    ok = whole and value <= min(0.1, peer / 100, torchft["TUNED"] / 10, torchft["DEFAULTS"] / 50) and worst <= 0.25
    more: dict[str, object] = {
        f"torchft_{name.lower()}": round(stall, 3) if math.isfinite(stall) else None for name, stall in torchft.items()
    }
    more["torchft_crashed"] = sum(one.crashed for one in found.values())
    emit("kill", value, "s", "torchrun 2.15, tuned", peer, ok, max=worst, events=len(stalls), crashed=lost, **more)
