"""What is asked does not tell the answer: of captions and category names alone nothing is learned."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from sonde.engine.coco import Coco, load_coco
from sonde.engine.tasks.entailment import draw_pairs
from sonde.engine.tasks.recognition import asking, draw_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Coco:
    """Annotations as uneven as COCO's: short and typical captions beside others, a person in half of the images."""
    folder = tmp_path_factory.mktemp("coco")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks.coco_data import Scale, write_annotations

        write_annotations(folder, Scale("val2014", 4_000, 20_000, 29_000))
    return load_coco(folder / "annotations", folder / "val2014")


# One exchanged word stands where nobody would have said it, now and then.
@pytest.mark.parametrize(("negatives", "most"), [("random", 0.53), ("shared-category", 0.54), ("swap", 0.6)])
@pytest.mark.parametrize("ngrams", [(1, 1), (1, 3)])
def test_the_text_of_a_caption_does_not_tell(
    photographs: Coco, negatives: str, most: float, ngrams: tuple[int, int]
) -> None:
    pairs = draw_pairs(photographs, negatives, None, 0)
    assert len(pairs) > 0.85 * len(photographs.images)
    texts = [caption.text for pair in pairs.values() for caption in pair]
    answers, groups = [1, 0] * len(pairs), np.repeat(np.arange(len(pairs)), 2)
    words = TfidfVectorizer(ngram_range=ngrams, token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    classifier = make_pipeline(words, LogisticRegression(max_iter=1000))
    score = cross_val_score(classifier, texts, answers, groups=groups, cv=GroupKFold(4)).mean()
    assert 0.43 < score < most


@pytest.mark.parametrize("negatives", ["random", "shared-category", "swap"])
def test_the_length_of_a_caption_does_not_tell(photographs: Coco, negatives: str) -> None:
    pairs = draw_pairs(photographs, negatives, None, 0)
    true, false = (np.array([len(pair[i].text.split()) for pair in pairs.values()]) for i in (0, 1))
    assert abs(true.mean() - false.mean()) < 0.1 * true.std()


def shares(asked: Sequence[tuple[str, int]]) -> dict[str, tuple[float, int]]:
    """Of each category the share of its questions to which the answer is yes, and how many there are."""
    counts = Counter(asked)
    totals = {name: counts[name, 0] + counts[name, 1] for name, _ in counts}
    return {name: (counts[name, 1] / total, total) for name, total in totals.items()}


@pytest.mark.parametrize(("balance", "n_images"), [(False, None), (True, 1000)])
@pytest.mark.parametrize("per_image", [2, 4])
def test_the_name_of_an_asked_category_does_not_tell(
    photographs: Coco, balance: bool, n_images: int | None, per_image: int
) -> None:
    images = draw_images(photographs, n_images, 3, balance)
    ask = asking(photographs, "asked", 3, per_image, images if balance else None)
    samples = [sample for image in images for sample in ask(image, photographs.path(image), "{category}?")]
    found = shares([(str(s.labels["asked"]), int(str(s.labels["present"]))) for s in samples])
    assert len(found) == 80
    # Within four standard errors of even; where several are drawn of one image none comes twice, which costs a little.
    allowed = 0.0 if per_image == 2 else 0.05
    for name, (share, total) in found.items():
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(total) + allowed, name
