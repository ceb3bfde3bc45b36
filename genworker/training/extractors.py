"""The extractor that evaluations of one set of real images share: made once, kept in a store.

In: real images, a store. Out: a trained (or, without labels, a random) extractor. Which one it is, its digest says.
"""

from __future__ import annotations

from genworker.config import digest_of
from genworker.errors import ObjectExistsError, ObjectMissingError, UsageError
from genworker.metrics.classifier import ClassifierConfig
from genworker.metrics.extractor import Extractor, load_extractor, random_extractor, train_extractor
from genworker.stores.base import Store
from genworker.training.reference import RealImages

EXTRACTOR_PREFIX = "evaluation/"


def get_extractor(real: RealImages, cache: Store | None, config: ClassifierConfig | None = None) -> Extractor:
    """The extractor for these images: from ``cache``, else trained (a minute for labelled 28x28 images) and put there.

    Of several that are made at once, the one that is stored first is everybody's.
    """
    config = config or ClassifierConfig()
    labelled = bool(real.schema.num_classes)
    identity = digest_of([real.train.digest(), config.model_dump(mode="json") if labelled else config.seed])
    key = f"{EXTRACTOR_PREFIX}extractor-{identity[:16]}.safetensors"
    if cache is not None:
        try:
            return _load(cache, key)
        except ObjectMissingError:
            pass
    extractor = (
        train_extractor(real.train.read, len(real.train), real.schema, config)
        if labelled
        else random_extractor(real.train.read, len(real.train), real.schema, config.seed)
    )
    if cache is not None:
        try:
            cache.put(key, extractor.to_bytes())
        except ObjectExistsError:
            return _load(cache, key)
    return extractor


def _load(cache: Store, key: str) -> Extractor:
    data = cache.get(key)
    try:
        return load_extractor(data)
    except UsageError as err:
        raise UsageError(f"{cache.url}/{key}: {err}") from err
