"""Errors that a user can mend."""


class InvalidJob(Exception):
    """The manifest can't be run as it is; the message names the field, the bound and the remedy."""
