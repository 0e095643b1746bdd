"""50 SIGKILLs among 3 workers, beside torchrun and torchft in the same run. Value: survivors' median stall, seconds."""

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
    tuned = torchft_peer.kills(arguments.peer_kills, torchft_peer.TUNED)
    print(f"torchft, tuned: {shown(tuned.stalls)}; survivors crashed: {tuned.crashed}", flush=True)
    plain = torchft_peer.kills(arguments.peer_kills, torchft_peer.DEFAULTS)
    print(f"torchft, defaults: {shown(plain.stalls)}; survivors crashed: {plain.crashed}", flush=True)
    value, worst, peer = statistics.median(stalls), max(stalls), statistics.median(gaps)
    # If all survivors crash with the victim each time, nobody goes on who could have stood still.
    ft_tuned, ft_plain = (statistics.median(each.stalls) if each.stalls else math.inf for each in (tuned, plain))
    whole = len(stalls) >= arguments.kills - 1 and lost == 0
    ok = whole and value <= min(0.1, peer / 100, ft_tuned / 10, ft_plain / 50) and worst <= 0.25
    told = [round(each, 3) if math.isfinite(each) else None for each in (ft_tuned, ft_plain)]
    more: dict[str, object] = {"torchft_tuned": told[0], "torchft_defaults": told[1]}
    more["torchft_crashed"] = tuned.crashed + plain.crashed
    emit("kill", value, "s", "torchrun 2.15, tuned", peer, ok, max=worst, events=len(stalls), crashed=lost, **more)
