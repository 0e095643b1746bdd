"""kubectl and helm, as a user would call them."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class CommandFailed(Exception):
    """A command ended with an error; the message holds what it said."""


def run(*command: str, env: dict[str, str] | None = None, stdin: str | None = None, timeout: float = 300) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        CommandFailed: it failed or took too long.
    """
    try:
        done = subprocess.run(
            command, env=env, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise CommandFailed(f"{command[0]} is not installed, or not on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(command)}: not done after {timeout:.0f} s") from error
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(command)}:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


@dataclass(frozen=True)
class Kubectl:
    """A cluster and the programs to talk to it with."""

    kubectl: str
    helm: str
    kubeconfig: Path | None
    context: str | None = None

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        context = ("--context", self.context) if self.context else ()
        return run(self.kubectl, *context, "--request-timeout=20s", *words, env=self.environment(), stdin=stdin)

    def get(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("get", *words, "-o", "json"))
        return found

    def install(self, *words: str) -> str:
        context = ("--kube-context", self.context) if self.context else ()
        return run(self.helm, "upgrade", "--install", *context, *words, env=self.environment())

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | ({"KUBECONFIG": str(self.kubeconfig)} if self.kubeconfig else {})
