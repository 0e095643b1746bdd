"""Neural architecture search: spaces, and algorithms that ask for architectures and are told how good they are."""
