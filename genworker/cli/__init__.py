"""The command line; filled in when the floors below stand."""


def main() -> None:
    """Run the command line."""
