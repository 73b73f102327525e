"""Conversations through chat templates: what is a prompt, what an answer, where it ends."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from rlhf.chat import conversation, template_of, whole_conversation, with_template
from rlhf.control_tokens import MarkedText
from rlhf.data.examples import DataError, Demonstration, Preference, TextData
from rlhf.evaluation import control_places
from rlhf.text import encode_answer, encode_prompt
from tests.data.collected import settings
from tests.tokenizer_kinds import CHATML, KINDS, WITH_TEMPLATE

DIALOGUE = "\n\nHuman: hello\n\nAssistant: Hi.\n\nHuman: who?\n\nAssistant:"


def data(*prompts: str, answer: str = " Me.") -> TextData:
    texts = [Demonstration(prompt, answer) for prompt in prompts]
    pairs = [Preference(prompt, answer, " You.") for prompt in prompts]
    return TextData(texts, texts, pairs, pairs, texts, texts, stop_strings=("Human:",))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_dialogues_become_turns_and_other_texts_one_message():
    assert conversation(DIALOGUE) == [user("hello"), {"role": "assistant", "content": "Hi."}, user("who?")]
    assert conversation("\n\nHuman: a\n\nHuman: b\n\nAssistant:") == [user("a\n\nb")]
    for text in ("Why?", "    code\n", "Human: a", "\n\nAssistant: a\n\nHuman: b\n\nAssistant:", "\n\nHuman: a"):
        assert conversation(text) == [user(text)]


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
def test_prompt_and_answer_are_what_the_template_writes(kind):
    tokenizer = KINDS[kind]()
    made = with_template(settings("hh"), data(DIALOGUE), tokenizer)
    messages = [user("hello"), {"role": "assistant", "content": "Hi."}, user("who?")]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "Me."}], tokenize=False)
    for example in (made.sft[0], made.prompts[:1][0], made.eval_prompts[0]):
        assert example.prompt == asked and whole.startswith(asked + example.response)
        ids = [*encode_prompt(tokenizer, example.prompt, 500)[0], *encode_answer(tokenizer, example.response)]
        assert ids == tokenizer(whole.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    assert made.pairs[0].chosen == made.sft[0].response and made.stop_strings == ()


def test_without_a_template_or_where_it_is_not_wanted_texts_stay():
    given = data(DIALOGUE)
    unmarked = with_template(settings("hh"), given, KINDS["neox"]())
    for part in ("sft", "pairs", "prompts", "eval_prompts"):
        assert [*getattr(unmarked, part)] == [*getattr(given, part)]
    assert unmarked.stop_strings == given.stop_strings
    assert with_template(settings("hh", template="none"), given, KINDS["qwen"]()) is given
    with pytest.raises(DataError, match=r"^dataset.template: chat, but .* has no chat template; use none"):
        with_template(settings("hh", template="chat"), given, KINDS["neox"]())


def test_an_answer_ends_with_what_the_template_ends_it_with():
    gemma = KINDS["gemma"]()
    template_of(gemma, "auto")
    assert gemma.eos_token == "<end_of_turn>"
    assert encode_answer(gemma, "yes<end_of_turn>\n").count(gemma.eos_token_id) == 1


THINKS = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
NO_THOUGHT = CHATML.replace(
    "{{ '<|im_start|>assistant\n' }}",
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
)


@pytest.mark.parametrize(
    ("template", "end"),
    [(THINKS, "<|im_start|>assistant\n"), (NO_THOUGHT, "<|im_start|>assistant\n"), (CHATML, "<|im_start|>assistant\n")],
)
def test_an_answer_does_not_stand_within_a_thought(template, end):
    tokenizer = KINDS["qwen"]()
    tokenizer.chat_template = template
    found = template_of(tokenizer, "auto")
    assert found is not None and found.prompt([user("hello")]).endswith(end) and found.blanks == ""


def test_messages_out_of_parquet_without_content_and_with_a_system_turn():
    rows = np.array([user("hello"), {"role": "assistant", "content": None}, user("more")], dtype=object)
    qwen, gemma = template_of(KINDS["qwen"](), "auto"), template_of(KINDS["gemma"](), "auto")
    assert qwen is not None and gemma is not None
    assert "<|im_start|>assistant\n<|im_end|>" in qwen.prompt(rows)
    told = [{"role": "system", "content": "Be brief."}, user("hello")]
    assert "<|im_start|>system\nBe brief.<|im_end|>" in qwen.prompt(told)
    assert "<start_of_turn>user\nBe brief.\n\nhello<end_of_turn>" in gemma.prompt(told)


def test_a_template_that_refuses_a_conversation_is_told_in_one_line():
    tokenizer = KINDS["qwen"]()
    tokenizer.chat_template = CHATML + "{% if messages | length > 2 %}{{ raise_exception('too\nlong') }}{% endif %}"
    made = with_template(settings("hh"), data(DIALOGUE), tokenizer)
    with pytest.raises(DataError, match=r"^dataset.template: .*too long.* use dataset.template=none$"):
        made.prompts[0]


def test_samples_say_which_characters_are_control_tokens():
    texts = {"prompt": MarkedText("<s> hi <s>", [(0, 3)]), "response": "<s>", "reference": ""}
    assert control_places(texts) == {"prompt_control": [[0, 3]]}


def test_messages_of_the_data_reach_the_template_as_they_are():
    """Turns, blanks and markers of their own included; a base model reads them as a dialogue."""
    told = [{"role": "system", "content": "Be brief."}, user("a\n\nHuman: b ")]
    asked = Demonstration("Be brief.\n\nHuman: a\n\nHuman: b \n\nAssistant:", "  code", {}, json.dumps(told))
    given = TextData(prompts=[asked], pairs=[Preference(asked.prompt, "  code", " no", {}, asked.messages)])
    made = with_template(settings("preferences"), given, KINDS["qwen"]())
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in told)
    assert made.prompts[0].prompt == made.pairs[0].prompt == f"{turns}<|im_start|>assistant\n"
    assert made.prompts[0].response == " code" and (made.pairs[0].chosen, made.pairs[0].rejected) == (" code", "no")
    (plain,) = with_template(settings("preferences"), given, KINDS["neox"]()).prompts
    assert (plain.prompt, plain.response) == (asked.prompt, asked.response)


def test_a_whole_prompt_knows_its_conversation_and_a_cut_one_does_not():
    """So that a reward model with a template of its own can write it by that."""
    for kind in ("qwen", "neox"):
        tokenizer = KINDS[kind]()
        prompt = with_template(settings("hh"), data(DIALOGUE), tokenizer).prompts[0].prompt
        whole, cut = encode_prompt(tokenizer, prompt, 500)[1], encode_prompt(tokenizer, prompt, 20)[1]
        assert isinstance(whole, MarkedText) and whole.messages == conversation(DIALOGUE)
        assert not getattr(cut, "messages", ())
        assert pickle.loads(pickle.dumps(whole)).messages == whole.messages
    ended = "<start_of_turn>user\nwho?<end_of_turn>\n<start_of_turn>model\nMe.<end_of_turn>\n"
    assert whole_conversation(KINDS["gemma"](), whole.messages, " Me.").endswith(ended)
