"""The tasks that have a name, one a file: `pixels` is the task that `pixels.py` lists in its `__all__`."""
