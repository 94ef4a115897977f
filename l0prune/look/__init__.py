"""What a model does: its graph, captured or recorded, the sizes that stay free, and what its modules keep between calls."""
