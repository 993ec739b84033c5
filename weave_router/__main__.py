"""Entry of the program ``weave-router`` and of ``python -m weave_router``. Decides nothing."""

from weave_router.cli.main import cli


def main() -> None:
    """Run the command line and end the process with its exit status."""
    cli(prog_name="weave-router")


if __name__ == "__main__":
    main()
