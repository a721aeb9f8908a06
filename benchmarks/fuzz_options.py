"""How hypothesis draws in benchmarks/fuzz.py."""

from hypothesis import HealthCheck, seed, settings


def options(max_examples: int, start: int):
    """What hypothesis is told: how many examples, and that they follow from the seed."""
    quiet = settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test):
        return quiet(seed(start)(test))

    return decorate
