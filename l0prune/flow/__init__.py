"""Units and what consumes them: the rules of the ops, applied to the graph of a model."""
