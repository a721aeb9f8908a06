"""`python -m gini_jax`: the same as launch.py."""

from gini_jax.cli import main

if __name__ == "__main__":
    main()
