"""Programs of the user's, and where their files come from."""

import re
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import DnsSubdomain, Model, Rule, Text
from adaptrain_api.objects import LocalObjectReference
from adaptrain_api.training.checkpoints import CheckpointVolume

PACKAGE = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9.!+_-]+$"
GIT_URL = r"^https?://[!-?A-~]+$"


class ConfigMapSource(Model):
    """Files from a ConfigMap."""

    name: Annotated[DnsSubdomain, Field(description="A ConfigMap in the job's namespace; each key is a file.")]


class GitSource(Model):
    """Files of a commit in a git repository."""

    url: Annotated[
        Text,
        Field(
            max_length=1024,
            pattern=GIT_URL,
            description="Of the repository, over HTTP or HTTPS; credentials belong into secretRef.",
        ),
    ]
    ref: Annotated[
        Text,
        Field(
            min_length=1,
            max_length=256,
            description="A branch, a tag, or a commit in full. All workers get the commit that the first one got.",
        ),
    ] = "HEAD"
    secret_ref: Annotated[
        LocalObjectReference | None,
        Field(description="A Secret of type kubernetes.io/basic-auth: keys username and password, or a token as one."),
    ] = None


class Source(Model):
    """Where a script's files come from, beside the image."""

    config_map: Annotated[ConfigMapSource | None, Field(description="A ConfigMap; or else git.")] = None
    git: Annotated[GitSource | None, Field(description="A git repository; or else a ConfigMap.")] = None

    rules = (
        Rule(
            cel="has(self.configMap) != has(self.git)",
            message="give configMap or git, one of them",
            check=lambda self: (self.config_map is None) != (self.git is None),
        ),
    )


# A command's words, each on a line. Both Python and CEL (RE2) read it.
_LAUNCHER = r"(\S*/)?(torchrun|accelerate\s+launch|deepspeed)(\s|$)"
_MODULE = r"-m\s*(torch\.distributed\.(run|launch)|accelerate\.commands\.launch|deepspeed\.launcher\.runner)(\s|$)"
LAUNCHES = (
    # The program, or what another one is asked to run: env, nice, …
    rf"^(\S*/)?((env|exec|nice|nohup|numactl|stdbuf|time|timeout|tini|dumb-init)\n(-[uC]\n\S+\n|-\S*\n|\d\S*\n|\w+=.*\n)*)?{_LAUNCHER}",
    # python -m torch.distributed.run
    rf"^\S*python[\d.]*\n(-\S+\n)*{_MODULE}",
    # A line for a shell.
    rf"^(\S*/)?(ba|da|a|z|k)?sh\n(-\S+\n)*-\w*c\n(?s:.*[\n;&|(])?\s*((exec|env|nohup|time|then|do|else)\s+|\w+=\S*\s+)*"
    rf"({_LAUNCHER}|\S*python[\d.]*\s+(-\S+\s+)*{_MODULE})",
)
"""One matches a command that starts training processes of its own, which would know nothing of the other workers. Each
is a rule: the API server bounds what a rule may cost."""


def _unlike(pattern: str, script: "Script") -> bool:
    return re.search(pattern, "\n".join(script.command)) is None


class Script(Model):
    """A program of your own, instead of model, data and phases."""

    launcher: Annotated[
        Literal["adaptrain", "torchrun"],
        Field(
            description="adaptrain: the program trains with adaptrain.elastic, and goes on when workers come and go."
            " torchrun: it is written for torchrun, and is started anew then."
        ),
    ] = "adaptrain"
    command: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=4096)]],
        Field(min_length=1, max_length=64, description="Program and arguments, run in each process of every worker."),
    ]
    source: Annotated[
        Source | None, Field(description="Files that the command finds in its working directory; absent: the image's.")
    ] = None

    packages: Annotated[
        list[Annotated[Text, Field(pattern=PACKAGE, max_length=256)]],
        Field(
            max_length=64,
            description="Python packages, such as timm==1.0.22, that an init container installs from wheels beside what"
            " the image has, which stays as it is. adaptrain run wants them installed.",
        ),
    ] = []
    package_cache: Annotated[
        CheckpointVolume | None,
        Field(description="Where downloads are kept; who can write there can run code in the job. Absent: nowhere."),
    ] = None
    resume_args: Annotated[
        list[Annotated[Text, Field(max_length=4096)]],
        Field(
            max_length=64,
            description="Added to the command of a script for torchrun once it has something to resume from:"
            " $(ADAPTRAIN_RESUME_FILE), in the folder $(ADAPTRAIN_RESUME_DIR).",
        ),
    ] = []
    resume_file: Annotated[
        Text | None,
        Field(
            min_length=1,
            max_length=1024,
            description="What it resumes from, in the job's checkpoint folder: a name or a pattern with *, ? and [],"
            " of whose matches the newest counts. Absent: any file.",
        ),
    ] = None

    rules = (
        Rule(
            cel="!has(self.resumeArgs) || size(self.resumeArgs) == 0 || self.launcher == 'torchrun'",
            message="resumeArgs are for launcher torchrun: a script with adaptrain.elastic goes on by itself",
            check=lambda self: not self.resume_args or self.launcher == "torchrun",
            path=".resumeArgs",
        ),
        Rule(
            cel="!has(self.resumeFile) || (has(self.resumeArgs) && size(self.resumeArgs) > 0)",
            message="resumeFile says when resumeArgs are added: give them, or remove it",
            check=lambda self: self.resume_file is None or bool(self.resume_args),
            path=".resumeFile",
        ),
        Rule(
            cel="!has(self.resumeFile) || !(self.resumeFile.startsWith('/') || '..' in self.resumeFile.split('/'))",
            message="resumeFile must be a relative path without '..', from the job's checkpoint folder",
            check=lambda self: (
                self.resume_file is None
                or not (self.resume_file.startswith("/") or ".." in self.resume_file.split("/"))
            ),
            path=".resumeFile",
        ),
        Rule(
            cel="!has(self.packageCache) || (has(self.packages) && size(self.packages) > 0)",
            message="packageCache keeps the downloads of packages: give them, or remove it",
            check=lambda self: self.package_cache is None or bool(self.packages),
            path=".packageCache",
        ),
        *(
            Rule(
                cel=f"!self.command.join('\\n').matches(r'{pattern}')",
                message="adaptrain takes the place of torchrun, accelerate launch and deepspeed, by which each worker"
                " would train alone: set launcher to torchrun, and command to python, your script and its arguments",
                check=partial(_unlike, pattern),
                path=".command",
            )
            for pattern in LAUNCHES
        ),
    )
