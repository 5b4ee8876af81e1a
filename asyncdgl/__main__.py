"""`python -m asyncdgl`."""

from asyncdgl.cli.main import main

if __name__ == "__main__":
    main()
