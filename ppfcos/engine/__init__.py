"""Training and evaluation: the loop, the processes, the checkpoints, the figures."""
