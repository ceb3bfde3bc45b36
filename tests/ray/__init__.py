"""What needs Ray, on one local cluster."""
