"""What ends a worker and is told in words, without a traceback."""


class InvalidJob(Exception):
    """The manifest can't be run as it is; the message names the field, the bound and the remedy."""


class Refused(Exception):
    """The coordinator does not take this worker."""


class ScriptFailed(Exception):
    """A script that this worker launched ended badly, by its own fault; the message ends with its last words."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        """The worker's own exit code, then."""
