"""verify as a record, as the command prints it."""

from stan_infer.verification import verification


def verify(a, b=None, **options):
    return verification.verify(a, b, **options).record()
