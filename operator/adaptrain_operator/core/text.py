"""Words for people."""

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """Which field is wrong, and how."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def duration(seconds: float) -> str:
    """Seconds for a person: 95 is 1m35s, 7300 is 2h1m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    return f"{whole // 3600}h{whole % 3600 // 60}m"
