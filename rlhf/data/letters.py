"""dataset=letters: a hotel answers its guests' letters. Made by code, so that it needs no download.

A letter complains about two of six topics; a good answer is sorry for both, puts both right and ends by inviting the
guest again:

    guest : cold room and late breakfast . hotel :
    sorry for the cold room . we repaired the heating . sorry for the late breakfast . we hired a cook . see you soon .

SFT texts are of mixed quality: each wanted sentence is there about every second time, and some answers blame the guest,
answer a complaint that nobody made or repeat themselves. Preferences are between two drafts, in which such slips are
frequent; they follow the hidden `gold` score through a Bradley-Terry choice, so they are noisy.

Every text is lower-case words between single blanks, full stops and colons being words too. The blank between a
prompt and its response belongs to the response (" sorry for ..."), as in dataset=hh; `gold` does not need it, since a
word-level tokenizer decodes a response without it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations, product
from typing import NamedTuple

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import DataError, Demonstration, Preference, TextData


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
BESIDE_COST = 0.75  # for each apology or remedy that answers no complaint of the letter
REPEAT_COST = 1.0  # for each sentence whose meaning has been said before
GARBAGE_COST = 0.25  # for each word that is not part of a well-formed sentence
LENGTH_COST = 0.1  # for each word beyond IDEAL_WORDS

IDEAL_WORDS = 26
"""Words of the best answer: two apologies of six words, two remedies of five, a closing of four."""
BEST_GOLD = 2 * APOLOGY_VALUE + 2 * REMEDY_VALUE + CLOSING_VALUE
"""All values and no cost. `ideal_reply` reaches it for every letter. Silence and blameless chat score 0."""


def gold(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The hidden score of each response: 4 at best, 0 for nothing said, no lower bound but by length."""
    return [_score(read_letter(prompt), response.split()) for prompt, response in zip(prompts, responses, strict=True)]


def read_letter(prompt: str) -> tuple[Complaint, ...]:
    """The complaints that a prompt states; what is no complaint is passed over."""
    found = (Complaint(topic, problem) for problem, topic in pairwise(prompt.split()))
    return tuple(complaint for complaint in found if complaint in ALL_COMPLAINTS)


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
        if meaning in said:
            score -= REPEAT_COST
        else:
            score += wanted.get(meaning, 0.0)
        if meaning.family == "blame":
            score -= BLAME_COST
        elif meaning.family in ("apology", "remedy") and meaning not in wanted:
            score -= BESIDE_COST
        said.add(meaning)
    if meaning is not None and meaning.family == "closing":
        score += CLOSING_VALUE
    return score


def _sentences(words: list[str]) -> Iterator[list[str]]:
    """The words cut after each full stop; what follows the last one is a sentence too."""
    start = 0
    for end in [i + 1 for i, word in enumerate(words) if word == "."] + [len(words)]:
        if end > start:
            yield words[start:end]
        start = end


def ideal_reply(prompt: str) -> str:
    """A response to `prompt` that scores BEST_GOLD, for a prompt with two complaints."""
    sentences = []
    for topic, problem in read_letter(prompt):
        sentences.append(APOLOGIES[0].format(problem=problem, topic=topic))
        sentences.append(REMEDIES[0].format(repair=TOPICS[topic].repair))
    return _response([*sentences, CLOSINGS[0]])


# The hotel's clerk, whose answers are the SFT texts: how often each kind of sentence is there.
APOLOGY_PROBABILITY = 0.52  # for each complaint
REMEDY_PROBABILITY = 0.5  # for each complaint
CLOSING_PROBABILITY = 0.48
THANKS_PROBABILITY = 0.5
EXTRAS = ((OFFERS, 0.3), (FILLERS, 0.35), (BLAMES, 0.12))


class Slips(NamedTuple):
    """How often an answer goes wrong in a way that the hidden score minds."""

    beside: float
    """An apology or a remedy answers a complaint that nobody made."""
    repeat: float
    """A sentence said twice."""
    garble: float
    """A sentence that begins as one and ends as another."""


SFT_SLIPS = Slips(beside=0.03, repeat=0.04, garble=0.0)
PAIR_SLIPS = Slips(beside=0.15, repeat=0.3, garble=0.0)
"""Pairs are drafts: as in practice, what is compared has the mistakes that a policy makes, and SFT texts have not."""
REVISED_SHARE = 0.5
"""Pairs in which the second answer is the first with one sentence changed; in the others both are drawn apart."""

MAX_WORDS = 27
"""Longest answer of the clerk; with EOS it fits in 28 tokens. Longer ones, and empty ones, are drawn anew."""


def draw_reply(random_: random.Random, letter: Letter, slips: Slips = SFT_SLIPS) -> str:
    """An answer of the clerk: every sentence is there or not by its own coin."""
    while True:
        sentences = _draw_sentences(random_, letter, slips)
        if 0 < sum(len(sentence.split()) for sentence in sentences) <= MAX_WORDS:
            return _response(sentences)


def _draw_sentences(random_: random.Random, letter: Letter, slips: Slips) -> list[str]:
    body = []
    for complaint in letter if random_.random() < 0.5 else letter[::-1]:
        if random_.random() < APOLOGY_PROBABILITY:
            body.append(_apology(random_, _meant(random_, complaint, letter, slips)))
        if random_.random() < REMEDY_PROBABILITY:
            body.append(_remedy(random_, _meant(random_, complaint, letter, slips).topic))
    for forms, probability in EXTRAS:
        if random_.random() < probability:
            _insert(random_, body, random_.choice(forms))
    if body and random_.random() < slips.repeat:
        _insert(random_, body, random_.choice(body))
    if body and random_.random() < slips.garble:
        place = random_.randrange(len(body))
        body[place] = _garbled(random_, body[place])
    opening = [random_.choice(THANKS)] if random_.random() < THANKS_PROBABILITY else []
    closing = [random_.choice(CLOSINGS)] if random_.random() < CLOSING_PROBABILITY else []
    return opening + body + closing


def _apology(random_: random.Random, complaint: Complaint) -> str:
    return random_.choice(APOLOGIES).format(problem=complaint.problem, topic=complaint.topic)


def _remedy(random_: random.Random, topic: str) -> str:
    return random_.choice(REMEDIES).format(repair=TOPICS[topic].repair)


def _meant(random_: random.Random, complaint: Complaint, letter: Letter, slips: Slips) -> Complaint:
    """What a sentence is about: the complaint, or by a slip one of a topic that the letter does not name."""
    if random_.random() >= slips.beside:
        return complaint
    topics = [made.topic for made in letter]
    return random_.choice([other for other in ALL_COMPLAINTS if other.topic not in topics])


def _revised(random_: random.Random, letter: Letter, reply: str) -> str:
    """A reply with one sentence changed: made to miss the letter's complaints, said twice, or left out."""
    sentences = [" ".join(words) for words in _sentences(reply.split())]
    place = random_.randrange(len(sentences))
    family = SENTENCES[sentences[place]].family if sentences[place] in SENTENCES else ""
    if family in ("apology", "remedy"):
        other = _meant(random_, letter[0], letter, Slips(beside=1.0, repeat=0.0, garble=0.0))
        sentences[place] = _apology(random_, other) if family == "apology" else _remedy(random_, other.topic)
    elif random_.random() < 0.5 or len(sentences) == 1:
        sentences.insert(place, random_.choice(sentences))
    else:
        del sentences[place]
    return _response(sentences) if sum(len(s.split()) for s in sentences) <= MAX_WORDS else reply


def _garbled(random_: random.Random, sentence: str) -> str:
    """The beginning of a sentence and the end of another."""
    words, other = sentence.split(), random_.choice(list(SENTENCES)).split()
    return " ".join([*words[: random_.randint(1, len(words) - 2)], *other[random_.randint(1, len(other) - 2) :]])


def _insert(random_: random.Random, body: list[str], sentence: str) -> None:
    body.insert(random_.randint(0, len(body)), sentence)


def _response(sentences: list[str]) -> str:
    return " " + " ".join(sentences)


def prompt_of(letter: Letter) -> str:
    first, second = (f"{complaint.problem} {complaint.topic}" for complaint in letter)
    return f"guest : {first} and {second} . hotel :"


HELD_OUT_SHARE = 0.25


def split_letters(seed: int) -> tuple[list[Letter], list[Letter]]:
    """All 480 letters as (trained on, held out). A letter and the one with its complaints swapped stay together."""
    pairs = [(a, b) for a, b in permutations(ALL_COMPLAINTS, 2) if a.topic < b.topic]
    random.Random(f"{seed} split").shuffle(pairs)
    held_out = round(HELD_OUT_SHARE * len(pairs))

    def both_orders(some: list[Letter]) -> list[Letter]:
        return [letter for a, b in some for letter in ((a, b), (b, a))]

    return both_orders(pairs[held_out:]), both_orders(pairs[:held_out])


def load_letters(config: DatasetConfig) -> TextData:
    """The data set of `config.seed`. SFT texts and pairs are drawn as many as asked for, null: one for each letter.

    Each part has random numbers of its own, so that the size of one does not change another.
    """
    train, held_out = split_letters(config.seed)
    for option, letters in (("num_prompts", train), ("num_eval_prompts", held_out)):
        asked = getattr(config, option)
        if asked is not None and asked > len(letters):
            raise DataError(f"dataset.{option}={asked}: dataset=letters has {len(letters)} of them; ask for fewer")
    reaches_best = config.max_new_tokens > IDEAL_WORDS  # a token for each word and EOS
    return TextData(
        sft=_demonstrations(config, "sft", train, config.num_sft),
        test_sft=_demonstrations(config, "test_sft", held_out, None),
        pairs=_preferences(config, "pairs", train, config.num_pairs),
        test_pairs=_preferences(config, "test_pairs", held_out, config.num_test_pairs),
        prompts=_demonstrations(config, "prompts", train, config.num_prompts),
        eval_prompts=_demonstrations(config, "eval_prompts", held_out, config.num_eval_prompts),
        gold=gold,
        best_gold=BEST_GOLD if reaches_best else None,
        words=_words(),
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
    chosen = _draw_letters(random_, letters, count)
    return [Demonstration(prompt_of(letter), draw_reply(random_, letter)) for letter in chosen]


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


def _words() -> list[str]:
    texts = [prompt_of((a, b)) for a, b in zip(ALL_COMPLAINTS, reversed(ALL_COMPLAINTS), strict=True)]
    return sorted({word for text in [*texts, *SENTENCES] for word in text.split()})
