"""The API of adaptrain: pydantic models of its custom resources, and the CRDs generated from them."""
