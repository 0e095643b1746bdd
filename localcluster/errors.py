"""The one error that users see."""


class ClusterError(Exception):
    """Something the user can act on, said in one sentence with the remedy."""
