"""Brings up a cluster, installs the chart, trains digits, disturbs it, and tells what happened.

CLUSTER=local (default) makes a cluster on this machine; CLUSTER=current uses the kubeconfig's (with IMAGE=… and
OPERATOR_IMAGE=…, which it can pull); CLUSTER=kind uses a kind cluster and Docker.
"""

import os
import sys

from examples.demo.clusters import Target, Unusable, choose
from examples.demo.kubectl import CommandFailed
from examples.demo.story import play
from localcluster.errors import ClusterError


def main() -> int:
    try:
        target: Target = choose(os.environ.get("CLUSTER", "local"))
        return play(target)
    except (Unusable, CommandFailed, ClusterError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on from here, `make down` removes everything", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
