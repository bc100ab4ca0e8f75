"""Weights of other projects: files, names, and the configuration under which they mean the same."""
