"""The command line as a user runs it, on clusters of its own."""
