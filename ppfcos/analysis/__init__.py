"""What an exported network consists of and what its layers cost."""
