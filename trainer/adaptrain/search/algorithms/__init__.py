"""Search algorithms, one a file, each after a paper that it names."""
