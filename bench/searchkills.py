"""50 kills of evaluators, coordinators and operators in a search of 500 trials on the local cluster.

Value: trials that are in the study, each once. There is no peer that has a study to lose: Katib's trials are pods.
"""

import argparse
import random

from bench.report import emit
from tests.e2e.cluster_api import until
from tests.e2e.cluster_searches import SCORED, apply_search
from tests.e2e.installation import installed
from tests.e2e.local_searches import numbers, told

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    trials, chance, killed = arguments.trials, random.Random(0), dict.fromkeys(("worker", "coordinator", "operator"), 0)
    with installed("adaptrain-bench") as site:
        search = apply_search(
            site, "kills", SCORED.replace("0.1", "0.4"), budget={"trials": trials}, parallelism={"max": 3}
        )
        for n in range(arguments.kills):
            search.reached((n + 1) * trials // (arguments.kills + 2), 300)
            role = chance.choices(list(killed), (6, 3, 1))[0]
            if role == "operator":
                until("an operator runs", site.kill_operator)
            else:
                search.kill(role)
            killed[role] += 1
        search.succeeded(600)
        until("its pods are gone", lambda: not search.pods("coordinator"), 60)
        found = numbers(told(search.folder))
        search.remove()
    once = sorted(found) == list(range(trials))
    emit(
        "searchkills",
        len(set(found)),
        "trials",
        "given out",
        trials,
        once,
        killed=killed,
        repeated=len(found) - len(set(found)),
    )
