"""What can run a bundle's network: one file a runtime, each imports its library only when it is made."""
