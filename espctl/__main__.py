"""The command `espctl`, and `python -m espctl`."""

import gc
import os
import sys

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def main() -> None:
    """Import the command line and run it; Ctrl-C while it is imported is a sentence too.

    Threads of torch that wait for each other spin, unless the user says otherwise: on cores that others use as well a
    step then takes ten times as long. So they sleep; OpenMP reads this once, when torch is imported.
    Memory is not collected while modules are imported, of which none is garbage: a sixth of the time of `runs ls`.
    """
    gc.disable()  # until a project is opened
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        from espctl.cli import main as run

        run()
    except KeyboardInterrupt:  # before the command line listened, or after it had ended
        sys.stderr.write("error: interrupted\nhint: run the same command again to go on\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
