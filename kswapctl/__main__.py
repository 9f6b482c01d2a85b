"""``python -m kswapctl``: the command line; also what torchrun starts."""

from kswapctl.cli import main

if __name__ == "__main__":
    main()
