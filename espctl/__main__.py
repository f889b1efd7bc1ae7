"""The command `espctl`, and `python -m espctl`."""

import sys


def main() -> None:
    """Import the command line and run it; Ctrl-C while it is imported is no traceback either."""
    try:
        from espctl.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\nhint: run the same command again to go on\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
