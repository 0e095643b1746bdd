"""20 joins and 20 leaves, beside torchrun in the same run. Value: the survivors' median stall, seconds."""

import argparse
import statistics

from bench.report import emit
from bench.stalls import resizes
from bench.torchrun_peer import kill_gaps

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--peer-events", type=int, default=3)
    arguments = parser.parse_args()
    joins, leaves = resizes(arguments.events)
    print(f"joins, ms: {[round(s * 1e3) for s in sorted(joins)]}", flush=True)
    print(f"leaves, ms: {[round(s * 1e3) for s in sorted(leaves)]}", flush=True)
    # torchrun restarts all workers at every change of membership: a lost agent is its fastest case.
    peer = statistics.median(kill_gaps(arguments.peer_events))
    value = statistics.median(joins + leaves)
    whole = len(joins) >= arguments.events - 1 and len(leaves) >= arguments.events - 1
    emit("resize", value, "s", "torchrun 2.15, tuned", peer, whole and value <= 0.06 and value <= peer / 100,
         joins=statistics.median(joins), leaves=statistics.median(leaves))  # fmt: skip
