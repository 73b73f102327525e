"""Tokenizers of the kinds that policies have, built here: their vocabularies are bytes or letters and a few merges.

| kind | texts begin with | blanks | padding |
| --- | --- | --- | --- |
| gpt2 | nothing | of bytes | none |
| neox | nothing | of bytes, and tokens of several | a token nobody calls padding |
| llama | BOS | "▁", put before every text | none, or a token |
| llama_legacy | BOS | "▁", put before every text by the normalizer | none |
| gemma | BOS | "▁" | a token |
| deepseek | BOS | of bytes | its EOS |
| qwen | nothing | of bytes | a token, or none |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)


def _bytes(special: Sequence[str], ordinary: Sequence[str] = ()) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("Ġ", "t"), ("he", "ll")]
    vocabulary = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges)])}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    inner.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    return inner


def _pieces(special: Sequence[str], bos: str, prefix: str) -> Tokenizer:
    """SentencePiece's BPE with bytes for what it does not know."""
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    merges = [("▁", "t"), ("▁", "h"), ("▁h", "e"), ("▁", "U")]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges)]
    inner = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    ends = [decoders.Strip(content=" ", left=1)] if prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    if prefix == "metaspace":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        blanks = normalizers.Replace(" ", "▁")
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks]) if prefix else blanks
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, inner.token_to_id(bos))]
    )
    return inner


def gpt2() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=_bytes([end]), bos_token=end, eos_token=end, unk_token=end)


def neox() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    inner = _bytes([end, "<|padding|>"], ["  ", "   "])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end, unk_token=end)


def llama(pad: str | None = None, prefix: str = "metaspace") -> PreTrainedTokenizerFast:
    inner = _pieces(["<unk>", "<s>", "</s>", *([pad] if pad else [])], "<s>", prefix)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": pad} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=LLAMA, **names)


def gemma() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=_pieces(special, "<bos>", ""), chat_template=GEMMA, **names)


def deepseek() -> PreTrainedTokenizerFast:
    """A turn begins with an added token that is not called special."""
    special, ordinary = (
        ["<|begin▁of▁sentence|>", "<|end▁of▁sentence|>"],
        ["<|User|>", "<|Assistant|>", "<think>"],
    )
    inner = _bytes(special, [*ordinary, "</think>", "<b>"])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], inner.token_to_id(special[0]))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=DEEPSEEK, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )


def qwen(pad: str | None = "<|endoftext|>") -> PreTrainedTokenizerFast:
    inner = _bytes(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"])
    names = {"eos_token": "<|im_end|>"} | ({"pad_token": pad} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHATML, **names)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2,
    "neox": neox,
    "llama": llama,
    "llama with padding": lambda: llama("<pad>"),
    "llama_legacy": lambda: llama(prefix="normalizer"),
    "gemma": gemma,
    "qwen": qwen,
    "deepseek": deepseek,
    "qwen without padding": lambda: qwen(None),
}
WITH_TEMPLATE = [kind for kind, make in KINDS.items() if make().chat_template]
BEGINS_WITH_BOS = [kind for kind in KINDS if kind.startswith(("llama", "gemma", "deepseek"))]
