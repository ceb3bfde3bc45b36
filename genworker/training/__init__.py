"""Training: from a spec and a source to checkpoints and a bundle. Only `trainer` knows Ray."""
