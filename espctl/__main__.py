"""`python -m espctl` is the installed command `espctl`."""

from espctl.cli import main

if __name__ == "__main__":
    main()
