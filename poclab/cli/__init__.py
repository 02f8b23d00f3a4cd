"""The command line."""


def main() -> None:
    """Run the program."""
    from poclab.cli.app import run

    run()
