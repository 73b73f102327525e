"""dataset=letters: the hidden score by hand, its maximum by brute force, the clerk's statistics, pairs, the split."""

import math
import random
import statistics
import time
from itertools import combinations_with_replacement, product

import pytest

from rlhf.config.dataset import DatasetConfig
from rlhf.data import letters
from rlhf.data.examples import DataError, Demonstration, Preference, TextData
from rlhf.data.letters import (
    BEST_GOLD,
    IDEAL_WORDS,
    SENTENCES,
    Complaint,
    Letter,
    Meaning,
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


def wanted_by(letter: Letter) -> set[Meaning]:
    return {Meaning("apology", one) for one in letter} | {Meaning("remedy", one.topic) for one in letter}


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


def test_gold_of_any_text_is_finite_and_below_the_best(data: TextData):
    random_ = random.Random(0)
    vocabulary = [*data.words, "<unk>", "\x00", "é", "<pad>"]
    for _ in range(3000):
        response = " ".join(random_.choices(vocabulary, k=random_.randint(0, 40)))
        assert -40 < score(response) <= BEST_GOLD
        assert -40 < score(IDEAL, prompt=response) <= BEST_GOLD


@pytest.mark.parametrize("unit", ["sorry", ".", "the", SORRY_COLD, HEATING, AGAIN, "thanks for writing ."])
def test_repeating_one_word_or_sentence_scores_below_silence(unit: str):
    assert score(" ".join([unit] * 4)) < 0


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


def drawn(slips: letters.Slips) -> tuple[list[Letter], list[str], list[float]]:
    """20,000 letters, their answers and scores."""
    train, _ = letters.split_letters(0)
    random_ = random.Random(1)
    some = [random_.choice(train) for _ in range(20_000)]
    replies = [letters.draw_reply(random_, letter, slips) for letter in some]
    return some, replies, gold([prompt_of(letter) for letter in some], replies)


# Wanted means, deviations and shares were measured in 150,000 draws of another seed; the tolerances are three standard
# errors of 20,000 draws.


def test_clerk_is_middling():
    """Mean 41% of the way from silence to the best; the best 2.4 standard deviations above."""
    _, _, scores = drawn(letters.SFT_SLIPS)
    assert statistics.mean(scores) == pytest.approx(1.652, abs=0.021)  # standard error 0.007
    assert statistics.pstdev(scores) == pytest.approx(0.969, abs=0.015)  # standard error 0.005
    best = statistics.mean(value == BEST_GOLD for value in scores)
    assert best == pytest.approx(0.00624, abs=0.0017)  # exact, see below; standard error 0.0006


def test_drafts_are_worse_than_the_clerk_by_more_slips():
    _, _, scores = drawn(letters.PAIR_SLIPS)
    assert statistics.mean(scores) == pytest.approx(1.000, abs=0.027)  # standard error 0.009
    assert statistics.pstdev(scores) == pytest.approx(1.221, abs=0.02)  # standard error 0.007
    best = statistics.mean(value == BEST_GOLD for value in scores)
    assert best == pytest.approx(0.00282, abs=0.0012)  # exact, see below; standard error 0.0004


@pytest.mark.parametrize(
    ("slips", "beside", "repeat"),  # standard errors of the shares: 0.0016 and 0.0012, 0.0031 and 0.0031
    [(letters.SFT_SLIPS, 0.0559, 0.0313), (letters.PAIR_SLIPS, 0.2503, 0.2513)],
)
def test_share_of_answers_with_each_slip(slips: letters.Slips, beside: float, repeat: float):
    some, replies, _ = drawn(slips)
    said = [[SENTENCES[sentence] for sentence in sentences_of(reply)] for reply in replies]
    missing = [
        any(one.family in ("apology", "remedy") and one not in wanted_by(letter) for one in meanings)
        for letter, meanings in zip(some, said, strict=True)
    ]
    assert statistics.mean(missing) == pytest.approx(beside, abs=3 * math.sqrt(beside * (1 - beside) / 20_000))
    assert statistics.mean(len(set(meanings)) < len(meanings) for meanings in said) == pytest.approx(
        repeat, abs=3 * math.sqrt(repeat * (1 - repeat) / 20_000)
    )


@pytest.mark.parametrize(("slips", "nats"), [(letters.SFT_SLIPS, 5.0773), (letters.PAIR_SLIPS, 5.8697)])
def test_nats_to_a_best_reply(slips: letters.Slips, nats: float):
    """-log P(an answer scores the best), summed over every way to be redrawn. A slip beside keeps the length."""
    coins = [(6, letters.APOLOGY_PROBABILITY), (5, letters.REMEDY_PROBABILITY)] * 2
    coins += [(4, probability) for _, probability in letters.EXTRAS]
    coins += [(4, letters.CLOSING_PROBABILITY), (4, letters.THANKS_PROBABILITY)]
    best_coins = (True, True, True, True, False, False, False, True, False)
    kept = best = 0.0
    for up in product((True, False), repeat=len(coins)):
        chance = math.prod(p if is_up else 1 - p for (_, p), is_up in zip(coins, up, strict=True))
        lengths = [length * is_up for (length, _), is_up in zip(coins, up, strict=True)]
        body = [length for length in lengths[:7] if length]
        repeats = [(0, 1 - slips.repeat if body else 1.0)] + [(length, slips.repeat / len(body)) for length in body]
        for repeated, share in repeats:
            kept += chance * share * (0 < sum(lengths) + repeated <= letters.MAX_WORDS)
            best += chance * share * (up == best_coins and not repeated) * (1 - slips.beside) ** 4
    assert -math.log(best / kept) == pytest.approx(nats, abs=0.0001)


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
    assert sizes == [10_000, 120, 6400, 400, 360, 120]
    assert len({one.prompt for one in data.prompts}) == 360 and len({one.prompt for one in data.eval_prompts}) == 120


def test_letters_and_problems():
    train, held_out = letters.split_letters(0)
    assert len({*train, *held_out}) == len(train) + len(held_out) == 480
    assert all(first.topic != second.topic for first, second in train + held_out)
    assert all(letters.read_letter(prompt_of(letter)) == letter for letter in train + held_out)
    problems = [problem for topic in letters.TOPICS.values() for problem in topic.problems]
    assert len(set(problems)) == len(problems) == 24
    for forms, length in ((letters.APOLOGIES, 6), (letters.THANKS, 4), (letters.CLOSINGS, 4)):
        assert {len(form.split()) for form in forms} == {length}
    assert {len(sentence.split()) for sentence, said in SENTENCES.items() if said.family == "remedy"} == {5}


def changes(pair: Preference) -> list[tuple[str, str]] | None:
    """The sentences by which two replies differ, as (of the one, of the other), "" for none; None: by too much."""
    one, other = sorted((sentences_of(pair.chosen), sentences_of(pair.rejected)), key=len)
    if len(one) == len(other):
        return [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    places = [place for place in range(len(other)) if other[:place] + other[place + 1 :] == one]
    return [("", other[places[0]])] if places else None


def test_revised_pairs_differ_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(letters, "REVISED_SHARE", 1.0)
    kinds = {"beside": 0, "repeated": 0, "left out": 0}
    for pair in load_letters(config(num_sft=1, num_pairs=2000)).pairs:
        found = changes(pair)
        assert found is not None and len(found) == 1
        short, long = found[0]
        if short:
            meanings = SENTENCES[short], SENTENCES[long]
            assert meanings[0].family == meanings[1].family and meanings[0].family in ("apology", "remedy")
            assert not set(meanings) <= wanted_by(letters.read_letter(pair.prompt))
            kinds["beside"] += 1
        elif max(sentences_of(pair.chosen).count(long), sentences_of(pair.rejected).count(long)) > 1:
            kinds["repeated"] += 1
        else:
            assert SENTENCES[long].family not in ("apology", "remedy")
            kinds["left out"] += 1
    assert min(kinds.values()) > 200, kinds


def test_half_of_the_pairs_are_revised(monkeypatch: pytest.MonkeyPatch):
    """Those that differ in one sentence: half, and those 0.0070 of the rest that do so by chance."""

    def share() -> float:
        pairs = load_letters(config(num_sft=1)).pairs
        return statistics.mean(len(changes(pair) or ()) == 1 for pair in pairs)

    assert share() == pytest.approx(0.504, abs=0.019)  # standard error of 6400 pairs 0.0063
    monkeypatch.setattr(letters, "REVISED_SHARE", 0.0)
    assert share() == pytest.approx(0.0070, abs=0.0031)  # standard error 0.0010


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


def test_share_of_labels_that_agree():
    """At the configured scale: 0.925 of the pairs whose scores differ, standard error 0.0035; 0.127 tie (0.0042)."""
    pairs = load_letters(config(num_sft=1)).pairs
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = gold(prompts, [p.chosen for p in pairs]), gold(prompts, [p.rejected for p in pairs])
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert statistics.mean(gap > 0 for gap in gaps if gap) == pytest.approx(0.925, abs=0.0105)
    assert statistics.mean(gap == 0 for gap in gaps) == pytest.approx(0.127, abs=0.013)


def test_same_seed_same_data_and_parts_do_not_disturb_each_other(data: TextData):
    again = load_letters(config(num_sft=10))
    assert again.pairs == data.pairs and again.eval_prompts == data.eval_prompts
    assert load_letters(config(num_pairs=10)).sft == data.sft
    assert list(again.sft) != list(load_letters(config(num_sft=10, seed=1)).sft)


def test_first_texts_of_seed_0(data: TextData):
    """As when this was written: another Python or a refactoring must not change them unnoticed."""
    assert data.sft[0] == Demonstration(
        prompt="guest : hard bed and damp room . hotel :",
        response=" the sun shines . sorry for the lazy porter . we repaired the heating . parking is free .",
    )
    assert data.pairs[0] == Preference(
        prompt="guest : late breakfast and lumpy bed . hotel :",
        chosen=" thanks for writing . we love autumn . we hired a cook . see you soon .",
        rejected=" thanks for writing . we love autumn . i replaced the pipes . see you soon .",
    )


def test_drawing_is_fast():
    started = time.process_time()
    load_letters(config(num_sft=8000, num_pairs=1000))
    assert time.process_time() - started < 2  # 0.2 when nothing else runs


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
