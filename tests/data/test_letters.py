"""dataset=letters: the hidden score by hand, its maximum by brute force, the clerk's statistics, the split."""

import math
import random
import statistics
import time
from itertools import combinations_with_replacement, product
from pathlib import Path

import pytest
import yaml

from rlhf.config.dataset import DatasetConfig
from rlhf.data import letters
from rlhf.data.examples import DataError, TextData
from rlhf.data.letters import BEST_GOLD, IDEAL_WORDS, Complaint, gold, ideal_reply, load_letters, prompt_of

SETTINGS = yaml.safe_load((Path(__file__).parents[2] / "conf" / "dataset" / "letters.yaml").read_text())
COLD_LATE = "guest : the room was cold and the breakfast was late . hotel :"
SORRY_COLD, SORRY_LATE = "sorry for the cold room .", "sorry for the late breakfast ."
HEATING, COOK, AGAIN = "we have repaired the heating .", "we have hired a cook .", "please come again ."
IDEAL = " ".join([SORRY_COLD, HEATING, SORRY_LATE, COOK, AGAIN])


def config(**changes) -> DatasetConfig:
    return DatasetConfig(**(SETTINGS | changes))


@pytest.fixture(scope="module")
def data() -> TextData:
    return load_letters(config())


def score(response: str, prompt: str = COLD_LATE) -> float:
    return gold([prompt], [response])[0]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", 0),
        ("   ", 0),
        ("thanks for writing . it rained today . drinks are free .", 0),
        (SORRY_COLD, 0.75),
        ("we regret the late breakfast .", 0.75),
        (HEATING, 1),
        ("we already hired a cook .", 1),
        (AGAIN, 0.5),
        (f"{AGAIN} {HEATING}", 1),  # an invitation counts as the last sentence only
        (f"{SORRY_COLD} we regret the cold room .", 0.75 - 0.75),  # the same said twice
        ("sorry for the damp room .", -0.75),  # the guest did not say so
        ("we have moved the band .", -0.75),
        ("you are fussy .", -1),
        ("you are fussy . you are fussy .", -1 - 1 - 0.75),
        ("sorry for the cold room", -5 * 0.25),  # no full stop, no sentence
        ("sorry for the cold breakfast .", -6 * 0.25),
        (f"{HEATING} Thank YOU", 1 - 2 * 0.25),
        (". . .", -3 * 0.25),
        (f"{IDEAL} it rained today .", 4 - 0.5 - 4 * 0.1),  # closing no longer last, four words too many
        (IDEAL, 4),
        (" " + IDEAL + "\n", 4),
    ],
)
def test_gold_by_hand(response: str, expected: float):
    assert score(response) == pytest.approx(expected)


def test_gold_of_any_text_is_finite_and_below_the_best():
    random_ = random.Random(0)
    vocabulary = [*load_letters(config(num_sft=1, num_pairs=1)).words, "<unk>", "\x00", "é", "<pad>"]
    for _ in range(3000):
        response = " ".join(random_.choices(vocabulary, k=random_.randint(0, 40)))
        assert -40 < score(response) <= BEST_GOLD
        assert -40 < score(IDEAL, prompt=response) <= BEST_GOLD


@pytest.mark.parametrize("unit", ["sorry", ".", "the", SORRY_COLD, HEATING, AGAIN, "thanks for writing ."])
def test_repeating_one_word_or_sentence_scores_below_silence(unit: str):
    assert score(" ".join([unit] * 4)) < 0


def test_ideal_reply_scores_the_best_for_every_letter_and_fits():
    for letter in [letter for part in letters.split_letters(0) for letter in part]:
        prompt = prompt_of(letter)
        reply = ideal_reply(prompt)
        assert gold([prompt], [reply]) == [BEST_GOLD]
        assert len(reply.split()) == IDEAL_WORDS < config().max_new_tokens
    assert ideal_reply(COLD_LATE) == " " + IDEAL


@pytest.mark.parametrize(
    "letter",
    [(Complaint("room", "cold"), Complaint("bill", "high")), (Complaint("pool", "green"), Complaint("bed", "hard"))],
)
def test_no_combination_of_sentences_beats_the_best(letter):
    """Every multiset of up to six sentences, one of each kind standing for its like; order matters at the end alone."""
    prompt = prompt_of(letter)
    kinds = [
        AGAIN,
        "thanks for writing .",
        "it rained today .",
        "you are fussy .",
        "sorry for the loud music .",
        "sorry",
    ]
    kinds += [letters.REMEDIES[1].format(repair=letters.TOPICS[topic].repair) for topic in (*dict(letter), "music")]
    kinds += [letters.APOLOGIES[1].format(topic=topic, problem=problem) for topic, problem in letter]
    replies = []
    for count in range(7):
        for middle, end in product(combinations_with_replacement(kinds, count), ("", AGAIN)):
            replies.append(" ".join([*middle, end]))
    scores = gold([prompt] * len(replies), replies)
    assert len(replies) == 2 * math.comb(len(kinds) + 6, 6)
    assert max(scores) == BEST_GOLD
    best = {" ".join(sorted(reply.split())) for reply, value in zip(replies, scores, strict=True) if value == BEST_GOLD}
    assert len(best) == 1  # two apologies, two remedies, a closing


def test_clerk_is_middling():
    """Mean 41% of the way from silence to the best; the best 2.4 standard deviations above. Standard error 0.007."""
    train, _ = letters.split_letters(0)
    random_ = random.Random(1)
    drawn = [random_.choice(train) for _ in range(20_000)]
    scores = gold([prompt_of(letter) for letter in drawn], [letters.draw_reply(random_, letter) for letter in drawn])
    assert statistics.mean(scores) == pytest.approx(1.652, abs=0.03)
    assert statistics.pstdev(scores) == pytest.approx(0.973, abs=0.03)
    # The exact probability of a best reply is 0.00579 (5.15 nats), see below; 20,000 draws give it +- 0.0005.
    assert statistics.mean(value == BEST_GOLD for value in scores) == pytest.approx(0.0058, abs=0.002)


def test_nats_to_a_best_reply():
    """-log P(a reply of the clerk scores the best), summed by hand over every way to be redrawn."""
    coins = [(6, letters.APOLOGY_PROBABILITY), (6, letters.REMEDY_PROBABILITY)] * 2
    coins += [(4, letters.CLOSING_PROBABILITY), (4, letters.THANKS_PROBABILITY)]
    coins += [(4, probability) for _, probability in letters.EXTRAS]
    best_kinds = 5  # the first five coins up, the rest down
    kept = best = 0.0
    for up in product((True, False), repeat=len(coins)):
        chance = math.prod(p if is_up else 1 - p for (_, p), is_up in zip(coins, up, strict=True))
        words = [length for (length, _), is_up in zip(coins, up, strict=True) if is_up]
        body = [length for (length, _), is_up in zip(coins[:4] + coins[6:], up[:4] + up[6:], strict=True) if is_up]
        for beside, share in ((0, 1 - letters.BESIDE_PROBABILITY), (6, letters.BESIDE_PROBABILITY)):
            lengths = body + [beside] * (beside > 0)
            repeats = [(0, 1 - letters.REPEAT_PROBABILITY if lengths else 1.0)]
            repeats += [(length, letters.REPEAT_PROBABILITY / len(lengths)) for length in lengths]
            for repeated, part in repeats:
                total = sum(words) + beside + repeated
                kept += chance * share * part * (0 < total <= letters.MAX_WORDS)
                is_best = all(up[:best_kinds]) and not any(up[best_kinds:]) and not beside and not repeated
                best += chance * share * part * is_best
    assert -math.log(best / kept) == pytest.approx(5.152, abs=0.001)


def test_texts_round_trip_through_a_word_tokenizer(data: TextData):
    assert len(data.words) == len(set(data.words)) == 99
    words = set(data.words)
    demonstrations = [*data.sft, *data.test_sft, *data.prompts, *data.eval_prompts]
    texts = [(one.prompt, one.response) for one in demonstrations]
    texts += [
        (pair.prompt, reply) for pair in [*data.pairs, *data.test_pairs] for reply in (pair.chosen, pair.rejected)
    ]
    for prompt, response in texts:
        assert " ".join((prompt + response).split()) == prompt + response
        assert not words.isdisjoint(response.split()) and words.issuperset((prompt + response).split())
        assert len(prompt.split()) == 14 <= config().max_prompt_tokens
        assert len(response.split()) <= letters.MAX_WORDS < config().max_new_tokens
    assert words.issuperset(word for sentence in letters.SENTENCES for word in sentence.split())


def test_held_out_letters_are_new_in_either_order(data: TextData):
    def letters_of(part):
        return {frozenset(letters.read_letter(one.prompt)) for one in part}

    trained = letters_of([*data.sft, *data.pairs, *data.prompts])
    held_out = letters_of([*data.test_sft, *data.test_pairs, *data.eval_prompts])
    assert (len(trained), len(held_out)) == (336, 112)
    assert trained.isdisjoint(held_out)
    sizes = [
        len(part) for part in (data.sft, data.test_sft, data.pairs, data.test_pairs, data.prompts, data.eval_prompts)
    ]
    assert sizes == [3000, 224, 2500, 400, 672, 128]
    assert len({one.prompt for one in data.prompts}) == 672 and len({one.prompt for one in data.eval_prompts}) == 128


def test_labels_follow_bradley_terry(data: TextData):
    """With scale 2 the expected agreement with the hidden score is the mean of sigmoid(2 |gap|): 0.82 here."""
    pairs = load_letters(config(num_pairs=10_000)).pairs
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = gold(prompts, [p.chosen for p in pairs]), gold(prompts, [p.rejected for p in pairs])
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True) if a != b]
    agreed = statistics.mean(gap > 0 for gap in gaps)
    assert agreed == pytest.approx(statistics.mean(1 / (1 + math.exp(-2 * abs(gap))) for gap in gaps), abs=0.01)
    small = [gap for gap in gaps if 0.2 < abs(gap) < 0.3]  # gaps of 0.25: sigmoid(0.5) = 0.622
    assert statistics.mean(gap > 0 for gap in small) == pytest.approx(0.622, abs=0.05)


def test_same_seed_same_data_and_parts_do_not_disturb_each_other(data: TextData):
    again = load_letters(config(num_sft=10))
    assert again.pairs == data.pairs and again.eval_prompts == data.eval_prompts
    assert list(again.sft) != list(load_letters(config(num_sft=10, seed=1)).sft)
    # The first text of seed 0 when this was written: another Python or a refactoring must not change it unnoticed.
    assert data.sft[0].prompt == FIRST_PROMPT and data.sft[0].response == FIRST_RESPONSE


FIRST_PROMPT = "guest : the shower was blocked and the room was stuffy . hotel :"
FIRST_RESPONSE = (
    " thank you kindly . we have repaired the heating . sorry for the blocked shower . it rained today ."
    " please come again ."
)


def test_drawing_is_fast():
    started = time.process_time()
    load_letters(config(num_sft=8000, num_pairs=1000))
    assert time.process_time() - started < 1


def test_too_short_responses_leave_the_best_unknown_and_too_many_prompts_are_refused():
    assert load_letters(config(max_new_tokens=29)).best_gold == 4
    assert load_letters(config(max_new_tokens=28)).best_gold is None
    with pytest.raises(
        DataError, match=r"^dataset.num_eval_prompts=226: dataset=letters has 224 of them; ask for fewer$"
    ):
        load_letters(config(num_eval_prompts=226))
