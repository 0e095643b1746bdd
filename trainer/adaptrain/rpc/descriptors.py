"""How many files and sockets this process may have open."""

import resource

MOST = 65536


def raise_limit() -> int:
    """Raise the soft limit to what the hard one allows, as far as it is of use. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return MOST if soft == resource.RLIM_INFINITY else soft
