"""reward=learned: sequence classifiers of any architecture read at the right place; adapters; what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import processors
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from rlhf.control_tokens import MarkedText
from rlhf.data.examples import DataError, Demonstration, TextData
from rlhf.models.loading import ModelError, moved, word_tokenizer
from rlhf.models.reward_model import RewardModel, load_reward_model, new_reward_model
from rlhf.scorers import Scorer, load_scorer
from rlhf.scorers.classifier import TextClassifier
from tests.config.composed import config
from tests.helpers import nudge, tiny_model
from tests.scorers.made_up import bert_tokenizer, byte_tokenizer, classifier
from tests.tokenizer_kinds import KINDS

CPU = torch.device("cpu")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PROMPTS, ANSWERS = ["one two", "three", "one two three four"], [" five", " six seven eight nine", " ten"]
NO_DATA = TextData((), (), (), (), (), ())
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


def gpt2(folder: Path, **settings: Any) -> Path:
    """Learned positions, no pad token anywhere, and an EOS that is also all that could be taken for padding."""
    config = GPT2Config(vocab_size=257, n_positions=48, n_embd=16, n_layer=2, n_head=2, **{"num_labels": 1, **settings})
    classifier(GPT2ForSequenceClassification, config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def bloom(folder: Path) -> Path:
    """No position ids."""
    config = BloomConfig(vocab_size=257, hidden_size=16, n_layer=2, n_head=2, num_labels=1)
    classifier(BloomForSequenceClassification, config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    """A tokenizer that begins each text with a token of its own."""
    config = LlamaConfig(vocab_size=260, num_labels=1, max_position_embeddings=96, **SIZES)
    classifier(LlamaForSequenceClassification, config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 257)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    config = BertConfig(vocab_size=14, max_position_embeddings=12, num_labels=1, **SIZES)
    classifier(BertForSequenceClassification, config).save_pretrained(folder)
    tokenizer = bert_tokenizer(WORDS)
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(folder)
    return folder


def scorer(folder: Path, *overrides: str) -> Scorer:
    run = config(f"reward.path={folder}", *overrides)
    return load_scorer(run, folder, CPU, NO_DATA)


@torch.no_grad()
def plain(folder: Path, tokens: list[int]) -> float:
    """transformers' own score of one text without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = None  # one row needs none
    return float(model(torch.tensor([tokens])).logits)


DECODERS = {"gpt2": (gpt2, []), "bloom": (bloom, []), "llama": (llama, [257])}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_decoder_is_read_at_the_eos_behind_the_text(tmp_path, name, batch_size):
    make, begin = DECODERS[name]
    folder = make(tmp_path / "reward")
    scores = scorer(folder, f"reward.batch_size={batch_size}").score(PROMPTS, ANSWERS).tolist()
    for prompt, answer, score in zip(PROMPTS, ANSWERS, scores, strict=True):
        letters = byte_tokenizer()(prompt + answer)["input_ids"]
        assert score == pytest.approx(plain(folder, [*begin, *letters, 256]), abs=1e-4)
        assert abs(score - plain(folder, [*begin, *letters])) > 1e-3
    assert len({round(score, 3) for score in scores}) == 3


def test_padding_is_where_the_mask_says_not_where_an_eos_stands(tmp_path):
    folder = gpt2(tmp_path / "reward")
    odd = "one<|endoftext|><|endoftext|>"  # ends like a padded text: one EOS is enough
    (alone,) = scorer(folder).score(["two"], [odd]).tolist()
    beside = scorer(folder).score(["two", "a much longer text "], [odd, "of all"])[0].item()
    tokens = [*byte_tokenizer()("twoone")["input_ids"], 256]
    assert alone == pytest.approx(plain(folder, tokens), abs=1e-4)
    assert beside == pytest.approx(alone, abs=1e-5)


def test_prefix_and_suffix_go_round_the_text_and_replace_the_eos(tmp_path):
    folder = gpt2(tmp_path / "reward")
    (score,) = scorer(folder, "reward.prefix='Q: '", "reward.suffix='!'").score(["one"], [" two"]).tolist()
    assert score == pytest.approx(plain(folder, byte_tokenizer()("Q: one two!")["input_ids"]), abs=1e-4)


def test_what_begins_every_text_is_there_once_and_what_a_text_spells_out_is_text(tmp_path):
    folder = llama(tmp_path / "reward")
    (score,) = scorer(folder).score(["<s>one "], ["<s>two<|endoftext|>"]).tolist()
    letters = byte_tokenizer()("one <s>two")["input_ids"]
    assert score == pytest.approx(plain(folder, [257, *letters, 256]), abs=1e-4)
    template = MarkedText("<s>one <|endoftext|>", [(0, 3), (7, 20)])
    (score,) = scorer(folder).score([template], ["two"]).tolist()
    one, two = (byte_tokenizer()(word)["input_ids"] for word in ("one ", "two"))
    assert score == pytest.approx(plain(folder, [257, *one, 256, *two, 256]), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_encoder_reads_whole_texts_by_its_own_forward(tmp_path, batch_size):
    folder = bert(tmp_path / "reward")
    scores = scorer(folder, f"reward.batch_size={batch_size}").score(PROMPTS, ANSWERS).tolist()
    for prompt, answer, score in zip(PROMPTS, ANSWERS, scores, strict=True):
        words = [4 + WORDS.index(word) for word in f"{prompt}{answer}".split()]
        assert score == pytest.approx(plain(folder, [2, *words, 3]), abs=1e-4)
    long = " ".join(WORDS * 2)  # 20 words where 10 fit between [CLS] and [SEP]
    assert scorer(folder).score([long], [""]).item() == pytest.approx(plain(folder, [2, *range(4, 14), 3]), abs=1e-4)


@pytest.mark.parametrize(("make", "precision"), [(gpt2, "bf16"), (gpt2, "fp16"), (bert, "bf16")])
def test_lower_precision_is_near(tmp_path, make, precision):
    folder = make(tmp_path / "reward")
    whole, half = scorer(folder), scorer(folder, f"reward.precision={precision}")
    assert isinstance(half, TextClassifier) and next(half.model.parameters()).dtype != torch.float32
    if half.head is not None:
        saved = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        assert torch.equal(half.head.weight, saved.score.weight)  # not rounded
    scores, exact = half.score(PROMPTS, ANSWERS), whole.score(PROMPTS, ANSWERS)
    assert scores.dtype == torch.float32 and not torch.equal(scores, exact)
    torch.testing.assert_close(scores, exact, atol=0.1, rtol=0)


# --- trained here --------------------------------------------------------------------------------------------------


def trained(folder: Path, **settings: Any) -> RewardModel:
    """What the reward-model stage leaves, with weights that nobody trained."""
    policy = tiny_model()
    tokenizer = word_tokenizer(WORDS)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    torch.manual_seed(0)
    limits = {"max_prompt_tokens": 4, "max_new_tokens": 4}
    reward_model = new_reward_model(folder / "policy", tokenizer, **limits)
    reward_model.mean, reward_model.std = 0.5, 2.0
    return reward_model


LIMITS = ("dataset.max_total_length=8", "dataset.max_new_tokens=4")


def test_a_model_trained_here_is_known_by_its_normalisation_and_gives_its_own_numbers(tmp_path):
    model = trained(tmp_path)
    moved(model.model, CPU)
    model.save(tmp_path / "final")
    expected = model.score(PROMPTS, ANSWERS)
    again = load_reward_model(tmp_path / "final", max_prompt_tokens=4, max_new_tokens=4)
    moved(again.model, CPU)
    assert torch.equal(again.score(PROMPTS, ANSWERS), expected)
    given = scorer(tmp_path / "final", *LIMITS)
    assert isinstance(given, RewardModel) and torch.equal(given.score(PROMPTS, ANSWERS), expected)
    small = scorer(tmp_path / "final", *LIMITS, "reward.batch_size=2")
    torch.testing.assert_close(small.score(PROMPTS, ANSWERS), expected, atol=1e-5, rtol=0)
    half: Any = scorer(tmp_path / "final", *LIMITS, "reward.precision=bf16")
    assert torch.equal(half.head.weight, model.head.weight) and half.model.base_model.dtype == torch.bfloat16
    torch.testing.assert_close(half.score(PROMPTS, ANSWERS), expected, atol=0.1, rtol=0)


def adapter(folder: Path, with_head: bool = True) -> tuple[RewardModel, PreTrainedModel]:
    """A reward model as an adapter over its policy, as peft saves one; returns it and the adapted network."""
    model = trained(folder)
    kind = TaskType.SEQ_CLS if with_head else None
    settings = LoraConfig(task_type=kind, r=2, target_modules=["query_key_value"], init_lora_weights=False)
    adapted = get_peft_model(model.model, settings)
    nudge({"head": adapted.base_model.model.score.modules_to_save["default"].weight} if with_head else {})
    adapted.save_pretrained(str(folder / "adapter"))
    model.tokenizer.save_pretrained(folder / "adapter")
    return model, adapted  # type: ignore[return-value]


@torch.no_grad()
def adapted_score(model: RewardModel, adapted: Any, prompt: str, answer: str) -> float:
    tokens = model.tokenizer(f"{prompt}{answer}")["input_ids"] + [1]
    return float(adapted(torch.tensor([tokens])).logits)


@pytest.mark.parametrize("written_here", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_an_adapter_brings_its_head_to_its_base(tmp_path, written_here, moved):
    model, adapted = adapter(tmp_path)
    expected = torch.tensor([adapted_score(model, adapted, *pair) for pair in zip(PROMPTS, ANSWERS, strict=True)])
    if written_here:
        (tmp_path / "adapter" / "reward_normalisation.json").write_text('{"mean": 0.5, "std": 2.0}')
        expected = (expected - 0.5) / 2
    overrides = list(LIMITS)
    if moved:
        (tmp_path / "policy").rename(tmp_path / "elsewhere")
        with pytest.raises(
            ModelError, match=r"^reward.path: .*adapter: it is an adapter of .*policy, which is not there; "
        ):
            scorer(tmp_path / "adapter", *overrides)
        overrides.append(f"reward.base={tmp_path / 'elsewhere'}")
    given = scorer(tmp_path / "adapter", *overrides)
    assert isinstance(given, RewardModel) == written_here
    torch.testing.assert_close(given.score(PROMPTS, ANSWERS), expected, atol=1e-4, rtol=0)


def test_an_adapter_without_a_head_over_a_policy_is_refused(tmp_path):
    adapter(tmp_path, with_head=False)
    with pytest.raises(ModelError, match=r"adapter lacks the weights score.weight; give a reward model, not a policy$"):
        scorer(tmp_path / "adapter")


def test_a_reward_model_starts_from_an_adapter_of_a_policy_too(tmp_path):
    policy = tiny_model()
    policy.save_pretrained(tmp_path / "base")
    loaded = type(policy).from_pretrained(tmp_path / "base")
    adapted = get_peft_model(loaded, LoraConfig(r=2, target_modules=["query_key_value"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "policy"))
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path / "policy")
    model = new_reward_model(tmp_path / "policy", tokenizer, max_prompt_tokens=4, max_new_tokens=4)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        expected = adapted(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        assert model.head.bias is None
        score = float(model.raw_scores(ids, torch.ones_like(ids, dtype=torch.bool)))
        assert score == pytest.approx(float(model.head.weight[0] @ expected), abs=1e-5)
        assert abs(float((policy(ids, output_hidden_states=True).hidden_states[-1][0, -1] - expected).norm())) > 0.1


# --- refused -------------------------------------------------------------------------------------------------------


def damaged(folder: Path) -> Path:
    (gpt2(folder) / "model.safetensors").write_bytes(b"nothing")
    return folder


def policy(folder: Path) -> Path:
    model = tiny_model()
    model.config.num_labels = 1
    model.save_pretrained(folder)
    return folder


def without_tokenizer(folder: Path) -> Path:
    config = GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, num_labels=1)
    classifier(GPT2ForSequenceClassification, config).save_pretrained(folder)
    return folder


def labelled(folder: Path) -> Path:
    return gpt2(folder, num_labels=2, id2label={0: "negative", 1: "positive"})


def pairwise(folder: Path) -> Path:
    """As LLM-Blender's PairRM says what it is."""
    gpt2(folder)
    settings = json.loads((folder / "config.json").read_text()) | {"ranker_type": "pairranker", "n_tasks": 1}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("make", [gpt2, bert])
def test_one_output_of_several_is_the_score(tmp_path, make):
    """By name and by number, each as a model has it whose only output that is."""
    make(tmp_path / "one")
    folder = tmp_path / "several"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    head = model.get_submodule("score" if hasattr(model, "score") else "classifier")
    weight = torch.randn(3, head.in_features, generator=torch.Generator().manual_seed(3))
    several = nn.Linear(head.in_features, 3, bias=head.bias is not None)
    names = {0: "toxic", 1: "neutral", 2: "kind"}
    shutil.copytree(tmp_path / "one", folder)
    model.config.id2label, model.config.label2id = names, {name: i for i, name in names.items()}
    model.set_submodule("score" if hasattr(model, "score") else "classifier", several)
    with torch.no_grad():
        several.weight.copy_(weight)
        if several.bias is not None:
            several.bias.zero_()
    model.save_pretrained(folder)
    with torch.no_grad():
        head.weight.copy_(weight[2:])
        if head.bias is not None:
            head.bias.zero_()
    model.set_submodule("score" if hasattr(model, "score") else "classifier", head)
    model.config.num_labels = 1
    model.save_pretrained(tmp_path / "one")
    alone = scorer(tmp_path / "one").score(PROMPTS, ANSWERS)
    for label in ("kind", "2"):
        torch.testing.assert_close(scorer(folder, f"reward.label={label}").score(PROMPTS, ANSWERS), alone)
    assert not torch.allclose(scorer(folder, "reward.label=toxic").score(PROMPTS, ANSWERS), alone)
    for label in ("kinder", "3"):
        with pytest.raises(ModelError, match=rf"^reward.label: {label} .*0 toxic, 1 neutral, 2 kind$"):
            scorer(folder, f"reward.label={label}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (labelled, r"^reward.label: missing; .*reward has 2 outputs \(0 negative, 1 positive\)"),
        (pairwise, r"^reward.path: .*reward compares two answers"),
        (policy, r"^reward.path: .*reward lacks the weights score.weight; give a reward model, not a policy$"),
        (damaged, r"^reward.path: cannot load .*reward \("),
        (without_tokenizer, r"^reward.tokenizer: no tokenizer at .*reward \(its files are not there\)"),
        (lambda folder: folder.mkdir(), r"^reward.path: cannot load .*reward \("),
    ],
)
def test_what_is_no_reward_model_is_one_line(tmp_path, make, message):
    make(tmp_path / "reward")
    with pytest.raises(ModelError, match=message) as error:
        scorer(tmp_path / "reward")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["prefix", "suffix", "label"])
def test_a_model_trained_here_takes_no_text_around_the_text(tmp_path, option):
    trained(tmp_path).save(tmp_path / "final")
    with pytest.raises(ModelError, match=rf"^reward.{option}: .*final was trained here"):
        scorer(tmp_path / "final", f"reward.{option}=x")


def test_a_whole_model_needs_no_base(tmp_path):
    with pytest.raises(ModelError, match=r"^reward.base: .*reward is no adapter and needs no base"):
        scorer(gpt2(tmp_path / "reward"), f"reward.base={tmp_path}")


# --- normalised, and compared --------------------------------------------------------------------------------------


def data(references: list[str], sft: list[str] | None = None) -> TextData:
    prompts = [Demonstration(f"p{i}", reference) for i, reference in enumerate(references)]
    texts = [Demonstration(f"s{i}", text) for i, text in enumerate(sft or ["none"])]
    return dataclasses.replace(NO_DATA, prompts=prompts, sft=texts)


def test_scores_are_normalised_on_reference_answers(tmp_path):
    folder = gpt2(tmp_path / "reward")
    references = ["one", "", "two three", "four", ""]  # two prompts have none
    raw = scorer(folder)
    of_references = raw.score(["p0", "p2", "p3"], ["one", "two three", "four"]).double()
    scores = raw.score(PROMPTS, ANSWERS)
    mean, std = of_references.mean().item(), of_references.std(correction=0).item()
    for how, expected in {"mean": scores - mean, "mean_std": (scores - mean) / std, "none": scores}.items():
        run = config(f"reward.path={folder}", f"reward.normalize={how}")
        given = load_scorer(run, folder, CPU, data(references)).score(PROMPTS, ANSWERS)
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)
        assert given.dtype == torch.float32


def test_without_reference_answers_sft_texts_serve_and_a_baseline_is_refused(tmp_path):
    folder = gpt2(tmp_path / "reward")
    scores, one = (scorer(folder).score([prompt], [answer]) for prompt, answer in (("one", "two"), ("s0", "three")))
    run = config(f"reward.path={folder}", "reward.normalize=mean_std")
    given = load_scorer(run, folder, CPU, data(["", ""], ["three"])).score(["one"], ["two"])
    torch.testing.assert_close(given, scores - one)  # one reference: nothing to scale by
    run = config(f"reward.path={folder}", "reward.baseline=reference")
    with pytest.raises(DataError, match=r"^reward.baseline=reference: dataset=letters has no reference answers"):
        load_scorer(run, folder, CPU, data(["", ""], ["three"]))


def test_a_tokenizer_with_a_template_writes_the_conversation_by_its_own(tmp_path):
    """Not by the policy's; a cut prompt, and one within a prefix, is scored as the policy saw it."""
    folder, gemma = tmp_path / "reward", KINDS["gemma"]()
    settings = LlamaConfig(vocab_size=len(gemma), num_labels=1, max_position_embeddings=160, **SIZES)
    classifier(LlamaForSequenceClassification, settings).save_pretrained(folder)
    gemma.save_pretrained(folder)
    asked = [{"role": "user", "content": "one two"}]
    prompt = MarkedText("<|im_start|>user\none two<|im_end|>\n", [(0, 12), (24, 34)], asked)
    whole = [*asked, {"role": "assistant", "content": "five"}]
    tokens = gemma(gemma.apply_chat_template(whole, tokenize=False), add_special_tokens=False)["input_ids"]
    run = ("dataset.max_total_length=120",)
    by_template = scorer(folder, *run)
    assert by_template.score([prompt], [" five"]).item() == pytest.approx(plain(folder, tokens), abs=1e-4)
    cut = MarkedText(str(prompt), prompt.control)
    assert abs(by_template.score([cut], [" five"]).item() - plain(folder, tokens)) > 1e-3
    (prefixed,) = scorer(folder, *run, "reward.prefix=a ").score([prompt], [" five"]).tolist()
    assert prefixed == scorer(folder, *run, "reward.prefix=a ").score([cut], [" five"]).item()
