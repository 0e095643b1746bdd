"""A real Kubernetes cluster on one Linux machine, without Docker: ``python -m localcluster up``."""
