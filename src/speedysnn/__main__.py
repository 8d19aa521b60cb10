"""`python -m speedysnn`: the command line."""

from speedysnn.cli import main

if __name__ == "__main__":
    main()
