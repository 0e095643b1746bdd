"""50 SIGKILLs among 3 workers, beside torchrun in the same run. Value: the survivors' median stall, seconds."""

import argparse
import statistics

from bench.report import emit
from bench.stalls import kills
from bench.torchrun_peer import kill_gaps

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--peer-kills", type=int, default=5)
    arguments = parser.parse_args()
    stalls, lost = kills(arguments.kills)
    print(f"stalls in ms: {[round(s * 1e3) for s in sorted(stalls)]}; workers lost besides: {lost}", flush=True)
    gaps = kill_gaps(arguments.peer_kills)
    print(f"torchrun's gaps in s: {[round(g, 1) for g in gaps]}", flush=True)
    value, worst, peer = statistics.median(stalls), max(stalls), statistics.median(gaps)
    whole = len(stalls) >= arguments.kills - 1 and lost == 0
    ok = whole and value <= 0.1 and worst <= 0.25 and value <= peer / 100
    emit("kill", value, "s", "torchrun 2.15, tuned", peer, ok, max=worst, events=len(stalls), crashed=lost)
