"""dataset=letters: the hidden score by hand, its maximum by brute force, the clerk's statistics, pairs, the split."""

import hashlib
import math
import statistics
from itertools import combinations_with_replacement, product

import pytest

from rlhf.config.dataset import DatasetConfig
from rlhf.data import letters
from rlhf.data.examples import DataError, TextData
from rlhf.data.letters import (
    BEST_GOLD,
    IDEAL_WORDS,
    SENTENCES,
    Complaint,
    Letter,
    gold,
    load_letters,
    prompt_of,
)
from tests.config.composed import composed

SETTINGS = composed()["dataset"]
COLD_LATE = "guest : cold room and late breakfast . hotel :"
SORRY_COLD, SORRY_LATE = "sorry for the cold room .", "sorry for the late breakfast ."
HEATING, COOK, AGAIN = "we repaired the heating .", "we hired a cook .", "please come again ."
IDEAL = f"{SORRY_COLD} {HEATING} {SORRY_LATE} {COOK} {AGAIN}"


def config(**changes) -> DatasetConfig:
    return DatasetConfig(**(SETTINGS | changes))


@pytest.fixture(scope="module")
def data() -> TextData:
    return load_letters(config())


def score(response: str, prompt: str = COLD_LATE) -> float:
    return gold([prompt], [response])[0]


def ideal_reply(letter: Letter) -> str:
    sentences = []
    for topic, problem in letter:
        sentences.append(letters.APOLOGIES[0].format(problem=problem, topic=topic))
        sentences.append(letters.REMEDIES[0].format(repair=letters.TOPICS[topic].repair))
    return " " + " ".join([*sentences, letters.CLOSINGS[0]])


def sentences_of(reply: str) -> list[str]:
    return [f"{sentence} ." for sentence in reply.strip().removesuffix(" .").split(" . ")]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", 0),
        ("   ", 0),
        ("thanks for writing . it rained today . drinks are free . parking is free .", 0),
        (SORRY_COLD, 0.75),
        ("we regret the late breakfast .", 0.75),
        (HEATING, 1),
        ("i hired a cook .", 1),
        (AGAIN, 0.5),
        (f"{AGAIN} {HEATING}", 1),  # an invitation counts as the last sentence only
        (f"see you soon . {AGAIN}", -1 + 0.5),  # the same said twice
        (f"{SORRY_COLD} we regret the cold room .", 0.75 - 1),
        (f"{HEATING} i repaired the heating . {HEATING}", 1 - 1 - 1),
        ("thanks for writing . thank you kindly .", -1),
        ("sorry for the damp room .", -0.75),  # the guest did not say so
        ("we changed the water .", -0.75),
        ("we regret the stale breakfast . i hired a cook .", -0.75 + 1),
        ("sorry for the dirty pool . we regret the dirty pool .", -0.75 - 0.75 - 1),
        ("you are fussy .", -1),
        ("you are fussy . you are fussy .", -1 - 1 - 1),
        ("you are fussy . nobody else complained .", -1 - 1),
        ("sorry for the cold room", -5 * 0.25),  # no full stop, no sentence
        ("sorry for the cold breakfast .", -6 * 0.25),  # a problem of another topic
        ("we repaired the water .", -5 * 0.25),
        (f"{HEATING} Thank YOU", 1 - 2 * 0.25),
        (". . .", -3 * 0.25),
        (f"thanks for writing . {IDEAL}", 4 - 4 * 0.1),  # four words too many
        (f"{IDEAL} it rained today .", 4 - 0.5 - 4 * 0.1),  # and closing no longer last
        (f"{IDEAL} {AGAIN}", 4 - 1 - 4 * 0.1),
        (f"{IDEAL} yes", 4 - 0.5 - 0.25 - 0.1),
        (IDEAL.removesuffix(AGAIN), 3.5),
        (IDEAL, 4),
        (" " + IDEAL + "\n", 4),
    ],
)
def test_gold_by_hand(response: str, expected: float):
    assert score(response) == pytest.approx(expected)


def test_gold_depends_on_the_letter_but_not_on_the_order_of_its_complaints():
    assert score(IDEAL, "guest : late breakfast and cold room . hotel :") == 4
    assert score(IDEAL, "guest : hot room and late breakfast . hotel :") == 4 - 0.75 - 0.75
    assert score(IDEAL, "guest : rude porter and late breakfast . hotel :") == 4 - 0.75 - 0.75 - 1 - 0.75
    assert score(IDEAL, "guest : rude porter and green pool . hotel :") == 0.5 - 4 * 0.75


def test_every_letter_has_a_reply_that_scores_the_best_and_fits():
    for letter in [letter for part in letters.split_letters(0) for letter in part]:
        reply = ideal_reply(letter)
        assert score(reply, prompt_of(letter)) == BEST_GOLD == 4
        assert len(reply.split()) == IDEAL_WORDS == 26 < config().max_new_tokens


@pytest.mark.parametrize(
    "letter",
    [
        (Complaint("room", "cold"), Complaint("breakfast", "late")),
        (Complaint("pool", "green"), Complaint("bed", "hard")),
    ],
)
def test_no_combination_of_sentences_beats_the_best(letter: Letter):
    """Every multiset of up to seven sentences, one of each kind standing for its like; order matters at the end alone.

    The end is a closing or what the combination happens to end with, which no other order can better.
    """
    kinds = [AGAIN, "thanks for writing .", "it rained today .", "you are fussy .", "sorry ."]
    kinds += ["sorry for the slow porter .", "we trained the staff ."]
    kinds += [letters.REMEDIES[1].format(repair=letters.TOPICS[topic].repair) for topic in dict(letter)]
    kinds += [letters.APOLOGIES[1].format(topic=topic, problem=problem) for topic, problem in letter]
    replies = []
    for count in range(7):
        for middle, end in product(combinations_with_replacement(kinds, count), ("", AGAIN)):
            replies.append(" ".join([*middle, end]))
    scores = gold([prompt_of(letter)] * len(replies), replies)
    assert len(replies) == 2 * math.comb(len(kinds) + 6, 6)
    assert max(scores) == BEST_GOLD
    best = [reply for reply, value in zip(replies, scores, strict=True) if value == BEST_GOLD]
    assert [sorted(sentences_of(reply)) for reply in best] == [sorted([*kinds[-4:], AGAIN])]


# Wanted means, deviations and shares were measured in 150,000 draws of another seed; the tolerances are three standard
# errors of 20,000 draws.


def test_texts_round_trip_through_a_word_tokenizer(data: TextData):
    # 6 topics, 24 problems, 14 words of repairs, 5 of prompts; then new ones: 4 of apologies, 1 of remedies, 5 of
    # thanks, 5 of closings, 5 of offers, 7 of fillers, 7 of blames.
    assert len(data.words) == len(set(data.words)) == 83
    words = set(data.words)
    demonstrations = [*data.sft, *data.test_sft, *data.prompts, *data.eval_prompts]
    texts = [(one.prompt, one.response) for one in demonstrations]
    texts += [
        (pair.prompt, reply) for pair in [*data.pairs, *data.test_pairs] for reply in (pair.chosen, pair.rejected)
    ]
    for prompt, response in texts:
        assert " ".join((prompt + response).split()) == prompt + response
        assert words.issuperset((prompt + response).split())
        assert SENTENCES.keys() >= set(sentences_of(response))
        assert len(prompt.split()) == 10 <= config().max_prompt_tokens
        assert 0 < len(response.split()) <= letters.MAX_WORDS < config().max_new_tokens
    assert words == {word for prompt, response in texts for word in (prompt + response).split()}
    assert words.issuperset(word for sentence in SENTENCES for word in sentence.split())


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_letters_are_new_in_either_order(seed: int):
    def letters_of(part):
        return {frozenset(letters.read_letter(one.prompt)) for one in part}

    data = load_letters(config(seed=seed))
    trained = letters_of([*data.sft, *data.pairs, *data.prompts])
    held_out = letters_of([*data.test_sft, *data.test_pairs, *data.eval_prompts])
    assert (len(trained), len(held_out)) == (180, 60)
    assert trained.isdisjoint(held_out)
    sizes = [
        len(part) for part in (data.sft, data.test_sft, data.pairs, data.test_pairs, data.prompts, data.eval_prompts)
    ]
    assert sizes == [10_000, 120, 9600, 400, 360, 120]
    assert len({one.prompt for one in data.prompts}) == 360 and len({one.prompt for one in data.eval_prompts}) == 120


@pytest.mark.parametrize("revised_share", [0.0, 0.5, 1.0])
def test_labels_follow_bradley_terry(monkeypatch: pytest.MonkeyPatch, revised_share: float):
    """The label of a pair agrees with the hidden score with probability sigmoid(scale |gap|)."""
    monkeypatch.setattr(letters, "REVISED_SHARE", revised_share)
    pairs = load_letters(config(num_sft=1, num_pairs=10_000, label_noise_scale=3.0)).pairs
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = gold(prompts, [p.chosen for p in pairs]), gold(prompts, [p.rejected for p in pairs])
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True) if a != b]
    quarters = [gap for gap in gaps if 0.2 < abs(gap) < 0.3]  # gaps of 0.25: sigmoid(0.75) = 0.679
    for some in (gaps, quarters):
        wanted = [1 / (1 + math.exp(-3 * abs(gap))) for gap in some]
        error = math.sqrt(sum(p * (1 - p) for p in wanted)) / len(some)
        assert error < (0.003 if some is gaps else 0.03)
        assert statistics.mean(gap > 0 for gap in some) == pytest.approx(statistics.mean(wanted), abs=3 * error)


def test_same_seed_same_data_and_parts_do_not_disturb_each_other(data: TextData):
    again = load_letters(config(num_sft=10))
    assert again.pairs == data.pairs and again.eval_prompts == data.eval_prompts
    assert load_letters(config(num_pairs=10)).sft == data.sft
    assert list(again.sft) != list(load_letters(config(num_sft=10, num_pairs=10, seed=1)).sft)


def test_too_short_responses_leave_the_best_unknown_and_too_many_prompts_are_refused():
    assert load_letters(config(num_sft=1, num_pairs=1)).best_gold == 4
    assert load_letters(config(num_sft=1, num_pairs=1, max_new_tokens=27)).best_gold == 4
    assert load_letters(config(num_sft=1, num_pairs=1, max_new_tokens=26)).best_gold is None
    with pytest.raises(
        DataError, match=r"^dataset.num_eval_prompts=121: dataset=letters has 120 of them; ask for fewer$"
    ):
        load_letters(config(num_eval_prompts=121))
    with pytest.raises(DataError, match=r"^dataset.num_prompts=361: dataset=letters has 360 of them; ask for fewer$"):
        load_letters(config(num_prompts=361))


def test_every_text_of_seed_0_is_what_it_was(data: TextData):
    """All parts, as the code that the published settings were searched with drew them: another Python or a refactoring
    must not change them unnoticed."""
    parts = (data.sft, data.test_sft, data.pairs, data.test_pairs, data.prompts, data.eval_prompts)
    digest = hashlib.sha256(repr([list(part) for part in parts]).encode()).hexdigest()
    assert digest == "75863f076d16eeb1b7c4eea85c6bef27465d085691a64150c3ec88bd476082b8"
