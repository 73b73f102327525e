"""Small reward models in the formats of the real ones, their tokenizers, and a server that follows a script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf.random import generator

END = "<|endoftext|>"


def lengths(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[int]:
    """A function for reward=python."""
    return [len(completion) for completion in completions]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, after <|endoftext|>: GPT-2's kind, without its merges, and like it without a pad token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)


def bert_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token for each word between [CLS] and [SEP]."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def drawn_wide(model: nn.Module, scale: float = 0.25) -> nn.Module:
    """Weights much wider than a real initialisation, so that a token or position that is off by one shows."""
    draws = generator(0, "reward model")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws) * scale
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.eval()


def classifier(kind: Callable[[PretrainedConfig], PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    model = drawn_wide(kind(config))
    assert isinstance(model, PreTrainedModel)
    return model


GPTJ = {"vocab_size": 264, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96, "rotary_dim": 4}


def released_gptj(folder: Path, file: str, change: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """A state dict like the paper's reward models in folder/file, its base and tokenizer in folders beside it.

    Returns:
        The tensors, without the buffers that old versions of transformers saved among them.
    """
    config = GPTJConfig(**GPTJ, bos_token_id=256, eos_token_id=256)
    body = drawn_wide(GPTJModel(config))
    tensors: dict[str, Any] = {f"transformer.{name}": p.detach() for name, p in body.named_parameters()}
    tensors["v_head.weight"] = torch.randn(1, 16, generator=generator(0, "head"))
    old = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 96, 96).tril().bool() for i in range(2)}
    old |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e9) for i in range(2)}
    saved = {**old, **tensors}
    change(saved)
    folder.mkdir(parents=True)
    torch.save(saved, folder / file)
    config.save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    return tensors


def slow_gptj_score(tensors: dict[str, Tensor], tokens: list[int], place: int) -> float:
    """GPT-J written out for one text in float64, after its paper's code; the head's output at `place`."""
    weights = {name.removeprefix("transformer."): tensor.double() for name, tensor in tensors.items()}
    width, heads, rotary = GPTJ["n_embd"], GPTJ["n_head"], GPTJ["rotary_dim"]
    size = width // heads

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def turned(vector: Tensor, position: int) -> Tensor:
        """Pairs (0, 1), (2, 3) ... of the first dimensions rotated by position * 10000^(-pair / pairs)."""
        result = vector.clone()
        for pair in range(rotary // 2):
            angle = torch.tensor(position * 10000.0 ** (-2 * pair / rotary), dtype=torch.float64)
            a, b = vector[2 * pair], vector[2 * pair + 1]
            result[2 * pair] = a * angle.cos() - b * angle.sin()
            result[2 * pair + 1] = b * angle.cos() + a * angle.sin()
        return result

    x = torch.stack([weights["wte.weight"][token] for token in tokens])
    for layer in range(GPTJ["n_layer"]):
        h = norm(x, f"h.{layer}.ln_1")
        q, k, v = (h @ weights[f"h.{layer}.attn.{n}_proj.weight"].T for n in "qkv")
        attended = torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            asked, there = (torch.stack([turned(row[part], t) for t, row in enumerate(x)]) for x in (q, k))
            for t in range(len(tokens)):
                match = there[: t + 1] @ asked[t] / size**0.5
                attended[t, part] = match.softmax(0) @ v[: t + 1, part]
        inner = h @ weights[f"h.{layer}.mlp.fc_in.weight"].T + weights[f"h.{layer}.mlp.fc_in.bias"]
        gelu = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
        fed = gelu @ weights[f"h.{layer}.mlp.fc_out.weight"].T + weights[f"h.{layer}.mlp.fc_out.bias"]
        x = x + attended @ weights[f"h.{layer}.attn.out_proj.weight"].T + fed
    return float(norm(x, "ln_f")[place] @ tensors["v_head.weight"][0].double())


Reply = Callable[[dict[str, Any]], "tuple[int, dict[str, str], bytes]"]
"""A request -> status, headers, body."""


def scores_of(score: Callable[[str, str], float]) -> Reply:
    """An honest reply."""

    def reply(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        pairs = zip(request["prompts"], request["responses"], strict=True)
        return 200, {}, json.dumps({"scores": [score(*pair) for pair in pairs]}).encode()

    return reply


def says(body: str | bytes, status: int = 200, **headers: str) -> Reply:
    content = body if isinstance(body, bytes) else body.encode()
    return lambda _: (status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def stalls(seconds: float) -> Reply:
    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(seconds)
        return 200, {}, b'{"scores": []}'

    return reply


class Server:
    """Replies with the script's entries in order, and then on and on with `always`."""

    def __init__(self, always: Reply, script: Sequence[Reply] = (), drip: float = 0.0) -> None:
        self.replies, self.always, self.drip = list(script), always, drip
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.url = ""

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(request)
        self.times.append(time.monotonic())
        return (self.replies.pop(0) if self.replies else self.always)(request)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json" and self.path == "/score"
            server.headers.append(dict(self.headers))
            status, headers, body = server.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    time.sleep(server.drip)
            except (BrokenPipeError, ConnectionResetError):  # who asked has given up
                pass

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        server.url = f"http://127.0.0.1:{listener.server_address[1]}/score"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            listener.block_on_close = False


OWN = """
from dataclasses import dataclass
from rlhf.algorithms import Algorithm
from rlhf.batches import LossOutput, Signal
from rlhf.config import AlgoConfig
from rlhf.masked import masked_mean

@dataclass(kw_only=True)
class Settings(AlgoConfig):
    stages = ("online",)
    group_size = 2

class Mine(Algorithm):
    config: Settings
    def signal(self, rewards, values, mask):
        scores = rewards.sum(1).view(-1, 2)
        return Signal(advantages=(scores - scores.mean(1, keepdim=True)).flatten())
    def loss(self, batch, logprobs, totals):
        gain = masked_mean(batch.advantages[:, None] * logprobs, batch.mask, totals.tokens)
        return LossOutput(-gain, {})

def score(completions, likes, **columns):
    return [float(text.count(like)) - len(text) / 10 for text, like in zip(completions, likes, strict=True)]
"""


def own_run(folder: Path) -> list[str]:
    """What a user types in `folder`, where this puts an algorithm with a reward, pairs and a model: relative paths."""
    (folder / "own.py").write_text(OWN)
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no", "likes": "ea"[n % 2]} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = GPT2Config(
        vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(model).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return [
        *("model=hub", "model.path=model", "model.sft=false", "model.train.mode=all", "tracking=none"),
        *("dataset=preferences", "dataset.path=pairs.jsonl", "dataset.max_total_length=24"),
        *("dataset.max_new_tokens=8", "algo=custom", "algo.loss=own.py:Mine", "reward=python"),
        *("reward.path=own.py:score", "debug=one_step", "rollout.num_responses=8", "optimization.minibatch_size=8"),
    ]
