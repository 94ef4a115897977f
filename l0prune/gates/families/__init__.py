"""The gate families: a file each, whose name is the name of the gate."""
