"""Pruning inside the trainers of other libraries: `transformers` and `lightning`, each imported with its module here alone."""
