"""Command line of gini_jax; without arguments it trains configs/digits.py. See the README."""

if __name__ == "__main__":  # processes that decode images read this file too, and need no jax
    from gini_jax.cli import main

    main()
