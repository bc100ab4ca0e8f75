"""From annotation files and pictures to batches; knows nothing of the network."""
