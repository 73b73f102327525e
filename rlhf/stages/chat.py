"""Talk to a policy before and after training, side by side. Nothing is trained, and no file is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.algorithms import algorithm_of
from rlhf.chat import ChatTemplate, Message, template_of, with_template
from rlhf.config import RunConfig
from rlhf.config.check import MADE_UP_LANGUAGES
from rlhf.control_tokens import joined
from rlhf.data import load_text_data
from rlhf.data.examples import DataError, Demonstration, TextData
from rlhf.data.tokenize import encode_prompts
from rlhf.models.hub import ModelError
from rlhf.models.loading import load_base, load_pretrained, moved, own_code_of
from rlhf.models.policy import Policy, policy_pair
from rlhf.precision import autocast
from rlhf.random import sampling_uniforms, seed_torch
from rlhf.rollout import generate
from rlhf.stages.setup import stops_of
from rlhf.terminal import tell, typed_lines

DIALOGUE = "\n\nHuman: {}\n\nAssistant:"
"""A turn in the form of data whose prompts end as this does."""


@dataclass
class Speaker:
    """A policy and the conversation with it so far."""

    name: str
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None
    stops: Sequence[str]
    dialogue: bool
    """Whether prompts without a template are dialogues; otherwise a line is a prompt as it stands."""
    system: str
    """dataset.system."""
    messages: list[Message] = field(default_factory=list)
    text: str = ""
    """The turns so far without a template."""

    def answer(self, line: str, config: RunConfig, turn: int) -> str:
        """Its response to the next line, sampled as a rollout's is."""
        settings = config.dataset
        if self.template is not None:
            system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
            prompt = self.template.prompt([*system, *self.messages, {"role": "user", "content": line}])
        elif self.dialogue:
            prompt = joined(self.text or self.system, DIALOGUE.format(line))
        else:
            prompt = f"{self.system}\n\n{line}" if self.system else line
        prompts = encode_prompts(self.tokenizer, [Demonstration(prompt, "")], settings.max_prompt_tokens)
        rollouts = generate(
            self.policy,
            self.tokenizer,
            prompts,
            sampling_uniforms(config.evaluation.seed, "chat", turn, 1, settings.max_new_tokens),
            sampling=config.rollout.sampling,
            batch_size=1,
            stop_strings=self.stops,
        )
        response = rollouts.responses[0]
        said = response if self.template is None else response.removeprefix(self.template.blanks)
        self.messages += [{"role": "user", "content": line}, {"role": "assistant", "content": said}]
        self.text = joined(prompt, response)
        notes = ["" if rollouts.ended[0] else f"cut at {settings.max_new_tokens} tokens"]
        notes += ["the beginning of the conversation was cut"] * (len(prompts.texts[0]) < len(prompt))
        noted = "; ".join(filter(None, notes))
        return response.strip() + (f" [{noted}]" if noted else "")

    def start_over(self) -> None:
        self.messages, self.text = [], ""


def talk(config: RunConfig, sft: Path | None, why_alone: str, console: Console) -> None:
    """Answer lines from stdin until its end or "exit"; an empty one starts over.

    Args:
        sft: the SFT stage's policy, where the initial one is that.
        why_alone: why the initial policy is not there; "" where it is.

    Raises:
        ModelError: a model cannot be loaded.
    """
    data = _data(config, console)
    speakers = _speakers(config, sft, why_alone, data, console)
    _introduce(speakers, config, data, console)
    for turn, line in enumerate(typed_lines("> ")):
        if not line:
            for speaker in speakers:
                speaker.start_over()
            tell(console, "(a new conversation)", "dim")
            continue
        answers = [speaker.answer(line, config, turn) for speaker in speakers]
        if len(answers) == 1:
            tell(console, answers[0])
            continue
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
        for speaker in speakers:
            table.add_column(speaker.name, ratio=1, overflow="fold")
        table.add_row(*map(Text, answers))
        console.print(table)


def _speakers(config: RunConfig, sft: Path | None, why_alone: str, data: TextData, console: Console) -> list[Speaker]:
    """The initial policy, where it is there and another one than evaluation.policy, and that one where it is given."""
    speakers: list[Speaker] = []
    path = config.evaluation.policy
    if not why_alone and (path is None or path != config.model.path):
        try:
            speakers.append(_speaker("before", config, data, *_initial(config, sft, data)))
        except ModelError as error:
            if path is None:
                raise
            why_alone = str(error)
    if why_alone:
        tell(console, f"the initial policy is not found ({why_alone}): the trained one's answers alone")
    if path is not None:
        loaded = load_pretrained(
            path,
            positions=config.dataset.max_total_length,
            own_code=own_code_of(config.model),
            option="evaluation.policy",
        )
        speakers.append(_speaker("after", config, data, *loaded, heads=path))
    return speakers


def _introduce(speakers: Sequence[Speaker], config: RunConfig, data: TextData, console: Console) -> None:
    settings = config.dataset
    form = "by the chat template" if speakers[-1].template is not None else "as dialogues"
    if speakers[-1].template is None and not speakers[-1].dialogue:
        form = "each line a prompt of its own, as it stands"
    tell(
        console,
        f"temperature {config.rollout.temperature:g}, at most {settings.max_new_tokens} tokens, {form}; an empty line "
        "starts over, exit or Ctrl-D ends",
    )
    vocabulary = speakers[-1].tokenizer.get_vocab()
    if data.words and all(word in vocabulary for word in data.words):
        tell(console, f"it knows {len(data.words)} words; a prompt of its data: {data.eval_prompts[0].prompt}")


def _data(config: RunConfig, console: Console) -> TextData:
    """What the data set says of how prompts look and responses end, where the options leave it to that."""
    dataset = config.dataset
    if dataset.stop_strings is not None and dataset.name not in MADE_UP_LANGUAGES:
        return TextData()
    try:
        return load_text_data(dataset, ("eval_prompts",))
    except DataError as error:
        tell(console, f"{error}; without the data no stop strings are known, and only its EOS ends an answer")
        return TextData()


def _initial(config: RunConfig, sft: Path | None, data: TextData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    positions = config.dataset.max_total_length
    if sft is not None:
        return load_pretrained(sft, positions=positions, own_code=own_code_of(config.model))
    seed_torch(config.sft.seed, "sft model")
    return load_base(config.model, data.words, positions, Path(config.cache_dir))


def _speaker(
    name: str,
    config: RunConfig,
    data: TextData,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heads: str | None = None,
) -> Speaker:
    """
    Args:
        heads: where the heads lie that the algorithm samples by, if it does.
    """
    device = torch.device(config.hardware.device)
    template = template_of(tokenizer, config.dataset.template)
    stops = stops_of(config.dataset, with_template(config.dataset, data, tokenizer), tokenizer)
    moved(model, device)
    policy = policy_pair(
        model,
        model,
        temperature=config.rollout.temperature,
        autocast=lambda: autocast(device, config.hardware.precision),
    )
    if heads is not None and config.algo.heads:
        algorithm = algorithm_of(config)
        algorithm.load_heads(heads, model.config.hidden_size, model.config.vocab_size, device)
        policy = next(iter(algorithm.policies(policy).values()))
    first = data.eval_prompts[0].prompt if len(data.eval_prompts) else ""
    dialogue, system = first.endswith(DIALOGUE.partition("{}")[2]), config.dataset.system or ""
    return Speaker(name, policy, tokenizer, template, stops, dialogue, system)
