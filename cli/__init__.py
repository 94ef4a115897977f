"""Command line of l0prune."""
