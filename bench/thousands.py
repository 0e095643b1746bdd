"""5,000 trials of a tabular objective through the whole path on the local cluster, with 4 evaluators.

Value: trials a second. Told beside it: the coordinator's memory, the largest object, and how long an ask took in the
first and in the last thousand trials.
"""

import argparse
import json
import re
import time
import urllib.request

from bench.report import emit
from tests.e2e.cluster_api import until
from tests.e2e.cluster_jobs import JOBS, processes
from tests.e2e.cluster_searches import ClusterSearch, apply_search
from tests.e2e.installation import installed

BAR = 100.0
MEMORY, OBJECT = 150e6, 100_000
FUNCTION = """
import random

TABLE = [[random.Random(f"{n} {c}").random() for c in range(4)] for n in range(10)]

def score(trial):
    return {"score": sum(row[c] for row, c in zip(TABLE, trial.choices.values()))}
"""


def asks(search: ClusterSearch) -> tuple[float, float]:
    """Seconds that all asks took, and how many there were, says the coordinator."""
    pod = until("a coordinator", lambda: search.pods("coordinator"))[0]
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = [re.search(rf"adaptrain_search_ask_seconds_{what}\{{[^}}]*\}} (\S+)", text) for what in ("sum", "count")]
    assert all(found), text
    return tuple(float(one.group(1)) for one in found if one is not None)  # type: ignore[return-value]


def memory(search: ClusterSearch) -> float:
    """Resident bytes of the coordinator."""
    pod = until("a coordinator", lambda: search.pods("coordinator"))[0]
    pages = 0
    for pid in processes(pod):
        with open(f"/proc/{pid}/statm") as file:
            pages += int(file.read().split()[1])
    return pages * 4096


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5000)
    arguments = parser.parse_args()
    trials = arguments.trials
    with installed("adaptrain-bench") as site:
        search = apply_search(
            site,
            "thousands",
            FUNCTION,
            space={"parameters": [{"name": f"c{n}", "values": [0, 1, 2, 3]} for n in range(10)]},
            budget={"trials": trials},
            parallelism={"max": 4},
        )
        search.reached(1, 120)
        began, first = time.time(), search.ended
        search.reached(trials // 5, 300)
        early = asks(search)
        search.reached(4 * trials // 5, 600)
        middle = asks(search)
        until("nearly all", lambda: search.ended >= trials - trials // 50, 600)
        late, resident = asks(search), memory(search)
        search.succeeded(300)
        rate = (trials - first) / (time.time() - began)
        names = [search.path, f"{JOBS}/namespaces/{site.namespace}/adaptivetrainingjobs/thousands-pool"]
        found = [site.api("GET", path)[1] for path in names]
        largest = max(len(json.dumps(one)) for one in found)
        search.remove()
    first_ask, last_ask = early[0] / early[1], (late[0] - middle[0]) / max(1, late[1] - middle[1])
    more = {
        "memory": resident,
        "largest_object": largest,
        "ask_ms_first_fifth": 1e3 * first_ask,
        "ask_ms_last_fifth": 1e3 * last_ask,
    }
    ok = rate >= BAR and resident <= MEMORY and largest < OBJECT
    emit("thousands", rate, "trials/s", "the bar", BAR, ok, **more)
