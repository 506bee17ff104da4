"""`python -m hydracore` is the `hydracore` command."""

from hydracore.cli import main

if __name__ == "__main__":
    main(prog_name="hydracore")
