"""`python -m sweeps` is the command `bitlora`."""

from sweeps.cli.app import main

if __name__ == "__main__":
    main()
