"""adaptrain: elastic PyTorch training that goes on while its workers come and go."""
