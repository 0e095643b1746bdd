"""What can go wrong with a request, as far as the caller would act differently."""


class ApiError(Exception):
    """The API server refused or could not be reached."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class NotFound(ApiError):
    """The object, or its kind, isn't there."""


class AlreadyExists(ApiError):
    """An object of that name is there: for us, success."""


class Conflict(ApiError):
    """The object changed meanwhile, or is another one of the same name: look again."""


class Refused(ApiError):
    """Forbidden by rights, quota or admission, or invalid: the same request will fail again."""

    @property
    def quota(self) -> bool:
        return "exceeded quota" in self.message


class Unavailable(ApiError):
    """No answer, an overload or a time-out: the same request may succeed later."""


def error(status: int, reason: str, message: str, retry_after: float | None = None) -> ApiError:
    """The error of a status code."""
    if status == 404:
        return NotFound(status, reason, message)
    if status == 409:
        kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        return kind(status, reason, message)
    if status in (400, 401, 403, 422):
        return Refused(status, reason, message)
    if status in (0, 408, 429) or status >= 500:
        return Unavailable(status, reason, message, retry_after)
    return ApiError(status, reason, message)
