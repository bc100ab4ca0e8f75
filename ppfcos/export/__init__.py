"""From a trained model to a bundle that runs without this package's training code."""
