"""The commands, one file each; `tools/*.py` only call their `main`."""
