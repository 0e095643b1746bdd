"""20 workers hang (SIGSTOP) among 3, beside torchrun in the same run. Value: a survivor's longest stall, seconds."""

import argparse
import signal
import statistics

from bench.report import emit
from bench.stalls import kills
from bench.torchrun_peer import LIMIT_SECONDS, kill_gaps

BAR_SECONDS = 2.0

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=20)
    stops = parser.parse_args().stops
    stalls, lost = kills(stops, how=signal.SIGSTOP)
    print(f"stalls in ms: {[round(s * 1e3) for s in sorted(stalls)]}; workers lost besides: {lost}", flush=True)
    # It has no end of its own: whoever waits for the hung worker waits for the group's time-out.
    gap = max(kill_gaps(1, how=signal.SIGSTOP))
    ok = len(stalls) >= stops - 1 and lost == 0 and max(stalls) <= BAR_SECONDS
    peer = "torchrun 2.15, tuned" + (" (not within this time)" if gap >= LIMIT_SECONDS else "")
    emit("hang", max(stalls), "s", peer, gap, ok, median=statistics.median(stalls), events=len(stalls), crashed=lost)
