"""dataset=letters: a hotel answers its guests' letters. Made by code, so that it needs no download.

A letter complains about two of six topics; a good answer is sorry for both, puts both right and ends by inviting the
guest again:

    guest : cold room and late breakfast . hotel :
    sorry for the cold room . we repaired the heating . sorry for the late breakfast . we hired a cook . see you soon .

SFT texts are of mixed quality: each wanted sentence is there about every second time, and some answers blame the guest,
answer a complaint that nobody made or repeat themselves. Preferences are between drafts, in which the last two mistakes
are frequent: half of them between two drafts, half between a draft and the same with one sentence changed. They follow
the hidden `gold` score through a Bradley-Terry choice, so they are noisy.

Every text is lower-case words between single blanks, full stops and colons being words too. The blank between a
prompt and its response belongs to the response (" sorry for ..."), as in dataset=hh; `gold` can do without it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise, permutations, product
from typing import Any, NamedTuple

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import PARTS, DataError, Demonstration, Preference, TextData


class Topic(NamedTuple):
    problems: tuple[str, ...]
    """What can be wrong with it; no problem belongs to two topics."""
    repair: str
    """What puts each of its problems right."""


TOPICS = {
    "room": Topic(("cold", "hot", "damp", "stuffy"), "repaired the heating"),
    "shower": Topic(("weak", "rusty", "blocked", "leaky"), "replaced the pipes"),
    "bed": Topic(("hard", "lumpy", "narrow", "creaky"), "ordered a mattress"),
    "breakfast": Topic(("late", "stale", "burnt", "salty"), "hired a cook"),
    "porter": Topic(("rude", "slow", "careless", "lazy"), "trained the staff"),
    "pool": Topic(("dirty", "green", "smelly", "murky"), "changed the water"),
}


class Complaint(NamedTuple):
    topic: str
    problem: str


Letter = tuple[Complaint, Complaint]

# Every form of a family has the same number of words, so that the best answer is as long for each letter.
APOLOGIES = ("sorry for the {problem} {topic} .", "we regret the {problem} {topic} .")
REMEDIES = ("we {repair} .", "i {repair} .")
THANKS = ("thanks for writing .", "thank you kindly .")
CLOSINGS = ("please come again .", "see you soon .")
OFFERS = ("drinks are free .", "parking is free .")
FILLERS = ("it rained today .", "the sun shines .", "we love autumn .")
BLAMES = ("nobody else complained .", "you are fussy .", "guests always exaggerate .")


class Meaning(NamedTuple):
    """What a well-formed sentence says: two forms that say the same are equal."""

    family: str
    about: Complaint | str


def _well_formed() -> Iterator[tuple[str, Meaning]]:
    for topic, (problems, repair) in TOPICS.items():
        for form in REMEDIES:
            yield form.format(repair=repair), Meaning("remedy", topic)
        for problem, form in product(problems, APOLOGIES):
            yield form.format(problem=problem, topic=topic), Meaning("apology", Complaint(topic, problem))
    yield from ((form, Meaning("thanks", "")) for form in THANKS)
    yield from ((form, Meaning("closing", "")) for form in CLOSINGS)
    for family, forms in (("offer", OFFERS), ("filler", FILLERS), ("blame", BLAMES)):
        yield from ((form, Meaning(family, form)) for form in forms)


SENTENCES = dict(_well_formed())
"""Every well-formed sentence of an answer. Whatever else stands between two full stops is garbage."""

ALL_COMPLAINTS = [Complaint(topic, problem) for topic in TOPICS for problem in TOPICS[topic].problems]

# The hidden score.
APOLOGY_VALUE = 0.75  # for each complaint of the letter, once
REMEDY_VALUE = 1.0  # for each complaint of the letter, once
CLOSING_VALUE = 0.5  # for an invitation as the last sentence
BLAME_COST = 1.0  # for each blaming sentence
OFF_TOPIC_COST = 0.75  # for each apology or remedy that answers no complaint of the letter
REPEAT_COST = 1.0  # for each sentence whose meaning has been said before
GARBAGE_COST = 0.25  # for each word that is not part of a well-formed sentence
LENGTH_COST = 0.1  # for each word beyond IDEAL_WORDS

IDEAL_WORDS = 26
"""Words of the best answer: two apologies of six words, two remedies of five, a closing of four."""
BEST_GOLD = 2 * APOLOGY_VALUE + 2 * REMEDY_VALUE + CLOSING_VALUE
"""All values and no cost, within reach for every letter. Silence scores 0, and so do thanks, offers and small talk."""


def gold(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The hidden score of each response: 4 at best, 0 for nothing said, no lower bound but by length."""
    return [_score(read_letter(prompt), response.split()) for prompt, response in zip(prompts, responses, strict=True)]


def read_letter(prompt: str) -> tuple[Complaint, ...]:
    """The complaints that a prompt states; what is no complaint is passed over."""
    read = (Complaint(topic, problem) for problem, topic in pairwise(prompt.split()))
    return tuple(complaint for complaint in read if complaint in ALL_COMPLAINTS)


def _score(complaints: Sequence[Complaint], words: list[str]) -> float:
    wanted = {Meaning("apology", complaint): APOLOGY_VALUE for complaint in complaints}
    wanted |= {Meaning("remedy", complaint.topic): REMEDY_VALUE for complaint in complaints}
    score = -LENGTH_COST * max(0, len(words) - IDEAL_WORDS)
    said: set[Meaning] = set()
    meaning = None
    for sentence in _sentences(words):
        meaning = SENTENCES.get(" ".join(sentence))
        if meaning is None:
            score -= GARBAGE_COST * len(sentence)
            continue
        score += -REPEAT_COST if meaning in said else wanted.get(meaning, 0.0)
        if meaning.family == "blame":
            score -= BLAME_COST
        elif meaning.family in ("apology", "remedy") and meaning not in wanted:
            score -= OFF_TOPIC_COST
        said.add(meaning)
    if meaning is not None and meaning.family == "closing":
        score += CLOSING_VALUE
    return score


def _sentences(words: list[str]) -> list[list[str]]:
    """The words cut after each full stop; what follows the last one is a sentence too."""
    cuts = [0, *(i + 1 for i, word in enumerate(words) if word == "."), len(words)]
    return [words[start:end] for start, end in pairwise(cuts) if start < end]


# The hotel's clerk, whose answers are the SFT texts: how often each kind of sentence is there.
APOLOGY_PROBABILITY = 0.52  # for each complaint
REMEDY_PROBABILITY = 0.5  # for each complaint
CLOSING_PROBABILITY = 0.48
THANKS_PROBABILITY = 0.5
EXTRAS = ((OFFERS, 0.3), (FILLERS, 0.35), (BLAMES, 0.12))


class Slips(NamedTuple):
    """How often an answer goes wrong in a way that the hidden score minds."""

    off_topic: float
    """For each apology or remedy: it answers a complaint that nobody made."""
    repeat: float
    """For each answer: it says a sentence twice."""


SFT_SLIPS = Slips(off_topic=0.03, repeat=0.04)
PAIR_SLIPS = Slips(off_topic=0.15, repeat=0.3)
"""As in practice, what is compared has the mistakes that a policy makes, and SFT texts seldom have them."""
REVISED_SHARE = 0.5
"""Pairs in which one answer is the other with one sentence changed; in the rest both are drawn apart."""

MAX_WORDS = 27
"""Longest answer in the data; with EOS it fits in 28 tokens. Longer ones, and empty ones, are drawn anew."""


def draw_reply(random_: random.Random, letter: Letter, slips: Slips = SFT_SLIPS) -> str:
    """An answer of the clerk: every sentence is there or not by its own coin."""
    while True:
        reply = " " + " ".join(_draw_sentences(random_, letter, slips))
        if 0 < len(reply.split()) <= MAX_WORDS:
            return reply


def _draw_sentences(random_: random.Random, letter: Letter, slips: Slips) -> list[str]:
    body = []
    for complaint in letter if random_.random() < 0.5 else letter[::-1]:
        if random_.random() < APOLOGY_PROBABILITY:
            body.append(_apology(random_, _meant(random_, complaint, letter, slips)))
        if random_.random() < REMEDY_PROBABILITY:
            body.append(_remedy(random_, _meant(random_, complaint, letter, slips).topic))
    for forms, probability in (*EXTRAS, (body, slips.repeat)):
        if forms and random_.random() < probability:
            sentence = random_.choice(forms)
            body.insert(random_.randint(0, len(body)), sentence)
    opening = [random_.choice(THANKS)] if random_.random() < THANKS_PROBABILITY else []
    closing = [random_.choice(CLOSINGS)] if random_.random() < CLOSING_PROBABILITY else []
    return opening + body + closing


def _apology(random_: random.Random, complaint: Complaint) -> str:
    return random_.choice(APOLOGIES).format(problem=complaint.problem, topic=complaint.topic)


def _remedy(random_: random.Random, topic: str) -> str:
    return random_.choice(REMEDIES).format(repair=TOPICS[topic].repair)


def _meant(random_: random.Random, complaint: Complaint, letter: Letter, slips: Slips) -> Complaint:
    """What a sentence is about: the complaint, or by a slip one of a topic that the letter does not name."""
    if random_.random() >= slips.off_topic:
        return complaint
    return random_.choice([other for other in ALL_COMPLAINTS if other.topic not in dict(letter)])


def _revised(random_: random.Random, letter: Letter, reply: str) -> str:
    """A reply with one sentence changed: an apology or a remedy made to miss the letter, another sentence left out, or
    one said once more. The reply itself where that would be too long."""
    sentences = [" ".join(words) for words in _sentences(reply.split())]
    place = random_.randrange(len(sentences))
    family = SENTENCES[sentences[place]].family
    if family in ("apology", "remedy"):
        other = _meant(random_, letter[0], letter, Slips(off_topic=1.0, repeat=0.0))
        sentences[place] = _apology(random_, other) if family == "apology" else _remedy(random_, other.topic)
    elif random_.random() < 0.5 or len(sentences) == 1:
        sentences.insert(place, random_.choice(sentences))
    else:
        del sentences[place]
    revised = " " + " ".join(sentences)
    return revised if len(revised.split()) <= MAX_WORDS else reply


def prompt_of(letter: Letter) -> str:
    first, second = (f"{complaint.problem} {complaint.topic}" for complaint in letter)
    return f"guest : {first} and {second} . hotel :"


HELD_OUT_SHARE = 0.25


def split_letters(seed: int) -> tuple[list[Letter], list[Letter]]:
    """All 480 letters as (trained on, held out). A letter and the one with its complaints swapped stay together."""
    pairs = [(a, b) for a, b in permutations(ALL_COMPLAINTS, 2) if a.topic < b.topic]
    random.Random(f"{seed} split").shuffle(pairs)
    both_orders = [letter for a, b in pairs for letter in ((a, b), (b, a))]
    held_out = 2 * round(HELD_OUT_SHARE * len(pairs))
    return both_orders[held_out:], both_orders[:held_out]


def load_letters(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    """The data set of `config.seed`. SFT texts and pairs are as many as asked for, null: one for each letter.

    RL prompts are letters drawn without repetition, so no more than there are. Each part has random numbers of its own,
    so that the size of one does not change another.
    """
    train, held_out = split_letters(config.seed)
    made: dict[str, Any] = {}
    for part in parts:
        option = PARTS[part]
        count = None if option is None else getattr(config, option)
        letters = held_out if part in ("test_sft", "test_pairs", "eval_prompts") else train
        if part in ("prompts", "eval_prompts") and count is not None and count > len(letters):
            raise DataError(f"dataset.{option}={count}: dataset=letters has {len(letters)} of them; ask for fewer")
        make = _preferences if part in ("pairs", "test_pairs") else _demonstrations
        made[part] = make(config, part, letters, count)
    return TextData(
        **made,
        gold=gold,
        best_gold=BEST_GOLD if config.max_new_tokens > IDEAL_WORDS else None,  # a token for each word and EOS
        words=sorted({word for text in [prompt_of(train[0]), *SENTENCES] for word in text.split()}),
    )


def _draw_letters(random_: random.Random, letters: list[Letter], count: int | None) -> Iterator[Letter]:
    """`count` letters (null: each once), each as often as the others give or take one, in random order."""
    left = len(letters) if count is None else count
    while left > 0:
        some = random_.sample(letters, min(left, len(letters)))
        yield from some
        left -= len(some)


def _demonstrations(config: DatasetConfig, part: str, letters: list[Letter], count: int | None) -> list[Demonstration]:
    random_ = random.Random(f"{config.seed} {part}")
    drawn = _draw_letters(random_, letters, count)
    return [Demonstration(prompt_of(letter), draw_reply(random_, letter)) for letter in drawn]


def _preferences(config: DatasetConfig, part: str, letters: list[Letter], count: int | None) -> list[Preference]:
    random_ = random.Random(f"{config.seed} {part}")
    pairs = []
    for letter in _draw_letters(random_, letters, count):
        prompt, a = prompt_of(letter), draw_reply(random_, letter, PAIR_SLIPS)
        revised = random_.random() < REVISED_SHARE
        while (b := _revised(random_, letter, a) if revised else draw_reply(random_, letter, PAIR_SLIPS)) == a:
            pass  # two equal answers carry no preference
        score_a, score_b = gold([prompt, prompt], [a, b])
        a_wins = random_.random() < 1 / (1 + math.exp(config.label_noise_scale * (score_b - score_a)))
        pairs.append(Preference(prompt, chosen=a, rejected=b) if a_wins else Preference(prompt, chosen=b, rejected=a))
    return pairs
