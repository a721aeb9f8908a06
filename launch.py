"""Command line of gini_jax; without arguments it trains configs/digits.py. See the README."""

from gini_jax.cli import main

if __name__ == "__main__":
    main()
