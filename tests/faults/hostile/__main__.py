"""Run the targets, each for so long, and say what came of them."""

import argparse
import logging
import random
import sys

from tests.faults.hostile.targets import TARGETS

BAR = 2.0

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    failed = False
    for target in arguments.target or TARGETS:
        outcome = TARGETS[target](arguments.seconds, random.Random(arguments.seed))
        print(outcome, flush=True)
        failed |= not outcome.ok or (outcome.ratio or 0.0) > BAR
    sys.exit(failed)
