"""Part of l0prune; see ARCHITECTURE.md."""
