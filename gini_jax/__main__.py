"""`python -m gini_jax` and the command `gini-jax`: the same as launch.py."""

import sys


def main() -> None:
    """Runs the command line; without the training code base's requirements, one error says so."""
    try:
        from gini_jax.cli import main as run
    except ModuleNotFoundError as error:
        from gini_jax.errors import lacking

        sys.exit(f"error: {lacking(error)}")
    run()


if __name__ == "__main__":
    main()
