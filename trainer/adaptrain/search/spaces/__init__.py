"""Search spaces: what an architecture is, and what is near it."""
