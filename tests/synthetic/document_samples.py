"""Documents of the BART pretraining for tests."""

import random

from multitask_vl.synthetic.pretraining import text_batches  # noqa: F401  (fills GENERATORS)
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, DocumentBuilder


def sample(template, number, max_objects=5, held_out=False):
    """Documents of a template, the same in every call."""
    rng = random.Random(template)
    return [GENERATORS[template](DocumentBuilder(rng, rng.randint(2, max_objects), held_out)) for _ in range(number)]
