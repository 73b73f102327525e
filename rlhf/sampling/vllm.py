"""rollout=vllm: rollouts sampled by a vLLM server, the user's (rollout.url) or the run's own.

Before each rollout the policy's weights go to the server by a folder, adapters folded in. Whether it has taken them is
told by the checksums of those tensors that it holds as the folder does, and by the logprobs of a fixed text beside our
own forward pass's; the latter is looked at after the rollout again. A fault is mended once, by loading again; a second
one ends the run. Old and reference logprobs are our own, whoever samples: the first ratio stays exactly 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batches import Rollouts
from rlhf.config import RunConfig
from rlhf.config.identity import run_id
from rlhf.control_tokens import eos_id, pad_id
from rlhf.distributed import on_first_rank, rank
from rlhf.models import PolicyModels
from rlhf.models.saving import save_for_server
from rlhf.processes import how_it_died
from rlhf.sampling.vllm_process import ServerProcess, free_port
from rlhf.text import stop_ids
from rlhf.vllm_client import LARGEST_SEED, RolloutServerError, VllmClient
from rlhf.waiting import locked, pause

LOG, WEIGHTS = "vllm.log", "vllm_weights"
"""In the run's folder."""
PROBE_TOKENS = 64
NOTHING = hashlib.sha256(b"").hexdigest()
"""The checksum of a matrix that a CPU holds packed: it says nothing of the matrix."""
ENDS_WITHIN = 5.0
"""Seconds that a server goes on after its engine has died."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCES = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}
"""Nats per token, where rollout.tolerance is null; in float32 a server was seen at 2e-7."""
ROUNDING, LEFT_BEHIND = 10.0, 0.1
"""Logprobs that are so many times further from ours than those of the first weights, and by such a share of what ours
have moved since the last ones, are of weights that were not all taken."""
TRANSFORMERS_BACKEND = ("gpt_neox",)
"""Of the model types that our own layers know, those that vLLM runs by transformers' code."""
NOT_SERVED = ("gpt_neo",)

Sample = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""As `rlhf.sampling.plain.sample_plain`, its first three arguments."""


class VllmSampler:
    """What samples a run's rollouts. All ranks call it at the same places; rank 0 alone hands weights over.

    Args:
        folder: the run's.
        write: lets rank 0 write into it.
        say: puts a line into the run's log.

    Raises:
        RolloutServerError: the server at rollout.url does not answer, or takes no texts that are long enough.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        write: Callable[[Callable[[], object]], None],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.folder, self.write, self.say = config, folder, write, say
        settings = config.rollout
        self.weights = folder / WEIGHTS if settings.weights_dir is None else Path(settings.weights_dir) / run_id(config)
        self.process: ServerProcess | None = None
        self.client = VllmClient(settings.url or "", settings.timeout_seconds)
        self.model = ""
        self._checksums = Checksums()
        self._before: Tensor | None = None
        """Our logprobs of the probe at the last hand-over."""
        self._first_gap: float | None = None
        self.tolerance = settings.tolerance or TOLERANCES[config.hardware.precision]
        if settings.url is not None:
            self.model = on_first_rank(lambda: self.client.check_length(config.dataset.max_total_length))

    def close(self) -> None:
        """Stop the run's own server, and delete what was handed over."""
        if rank() == 0:
            if self.process is not None:
                self.process.stop()
            shutil.rmtree(self.weights, ignore_errors=True)

    @contextlib.contextmanager
    def loaded(
        self,
        models: PolicyModels,
        tokenizer: PreTrainedTokenizerBase,
        probe: Sequence[int],
        iteration: int,
        stop_strings: Sequence[str],
    ) -> Iterator[Sample]:
        """The server with the policy's weights: a function that samples from it, at work within the context.

        Args:
            probe: the fixed text's tokens.

        Raises:
            RolloutServerError: the server is gone, or does not have these weights, before or after.
        """
        ours = own_logprobs(models, probe)
        with contextlib.ExitStack() as held:

            def hand_over() -> None:
                if self.config.rollout.url is not None:  # which other runs may ask too
                    held.enter_context(self._alone())
                self._hand_over(models, tokenizer, probe, ours, iteration)

            with self._server_explained():
                self.write(hand_over)
                self.client, self.model = on_first_rank(lambda: (self.client, self.model))
                yield partial(self._sample, tokenizer, stop_strings)
                on_first_rank(lambda: self._check_after(probe, ours))
        self._before = ours

    def check_rollouts(self, gap: float) -> None:
        """Raise RolloutServerError where the sampler's logprobs are not the policy's.

        Args:
            gap: mean distance between the two per sampled token, nats.
        """
        if not gap <= self.tolerance:
            raise self.client.error(
                f"sampled by logprobs that are {gap:.3g} nats per token from the policy's, beyond rollout.tolerance = "
                f"{self.tolerance:g}: other weights, another precision, or at a temperature other than "
                "1 no --logprobs-mode processed_logprobs"
            )

    def _sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_strings: Sequence[str],
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        uniforms: Tensor,
    ) -> tuple[Tensor, Tensor]:
        width, device = uniforms.shape[1], prompt_ids.device
        tokens = torch.full(uniforms.shape, pad_id(tokenizer), dtype=torch.int64)
        logprobs = torch.zeros(uniforms.shape)
        prompts = [ids[valid].tolist() for ids, valid in zip(prompt_ids.cpu(), prompt_mask.cpu(), strict=True)]
        seeds = (uniforms[:, 0].cpu() * LARGEST_SEED).long().tolist()  # of (seed, purpose, index), as the uniforms are
        stops = sorted({eos_id(tokenizer), *stop_ids(tokenizer, stop_strings)})

        def ask(prompt: list[int], seed: int) -> tuple[list[int], list[float]]:
            temperature = self.config.rollout.temperature
            return self.client.sample(self.model, prompt, length=width, temperature=temperature, stops=stops, seed=seed)

        pool = ThreadPoolExecutor(min(self.config.rollout.batch_size, len(prompts)), "vllm")
        try:
            for row, (drawn, known) in enumerate(pool.map(ask, prompts, seeds)):
                tokens[row, : len(drawn)], logprobs[row, : len(drawn)] = torch.tensor(drawn), torch.tensor(known)
        finally:
            pool.shutdown(cancel_futures=True)
        return tokens.to(device), logprobs.to(device)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        folder = Path(self.config.cache_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(self.client.url.encode()).hexdigest()[:16]
        return locked(folder / f"vllm-{name}.lock", "samples from the server at rollout.url")

    def _hand_over(
        self,
        models: PolicyModels,
        tokenizer: PreTrainedTokenizerBase,
        probe: Sequence[int],
        ours: Tensor,
        iteration: int,
    ) -> None:
        """Weights to the server, and whether it has them. A name of its own for each iteration: no cache of a shared
        file system takes one for another."""
        folder = (self.weights / f"{iteration:08d}").absolute()
        save_for_server(models, tokenizer, folder)
        if self.config.rollout.url is None and self.process is None:
            self._start(folder, models)
        else:
            if not self._checksums.seen:
                self.client.check_vocabulary(self.model, models.sampler.config.vocab_size)
            self.client.load(folder)
        if fault := self._fault(probe, ours, folder):
            self.say(f"rollout=vllm: {fault}; the weights are loaded again")
            self.client.load(folder)
            if fault := self._fault(probe, ours, folder):
                raise self.client.error(f"does not have the policy's weights, loaded twice: {fault}")
        self._checksums.keep()
        for old in self.weights.iterdir():
            if old.name != folder.name:
                shutil.rmtree(old, ignore_errors=True)

    def _fault(self, probe: Sequence[int], ours: Tensor, folder: Path | None) -> str:
        """How the server's weights are known not to be the policy's; empty where they are not."""
        if folder is not None and (name := self._checksums.compare(folder, self.client.checksums())):
            return f"the checksum of {name} is not that of its file"
        theirs = torch.tensor(self.client.logprobs(self.model, probe), dtype=torch.float64)
        gap = float((theirs - ours).abs().mean())
        fault = f"the logprobs of a fixed text are {gap:.3g} nats per token from our own"
        if not gap <= self.tolerance:
            return fault
        if self._first_gap is None:
            self._first_gap = gap
        moved = 0.0 if self._before is None else float((ours - self._before).abs().mean())
        if moved and gap > ROUNDING * self._first_gap and gap > LEFT_BEHIND * moved:
            return f"{fault}, which have moved by {moved:.3g}"
        return ""

    def _check_after(self, probe: Sequence[int], ours: Tensor) -> None:
        if fault := self._fault(probe, ours, None):
            raise self.client.error(f"lost the policy's weights while it sampled ({fault}); does another run use it?")

    def _start(self, folder: Path, models: PolicyModels) -> None:
        """The run's own server with the weights of `folder`; waits until it answers."""
        settings, longest = self.config.rollout, self.config.dataset.max_total_length
        port, log = free_port(), self.folder / LOG
        command = [settings.command, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--served-model-name", "policy", "--max-model-len", str(longest)]
        dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.config.hardware.precision]
        command += ["--dtype", dtype, "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
        environment = {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"}
        self.process = ServerProcess([*command, *settings.arguments], log, environment)
        self.say(f"rollout=vllm: starts {settings.command} at port {port}; its log is {log}")
        self.client = VllmClient(f"http://127.0.0.1:{port}", settings.timeout_seconds, "rollout.command")
        waited = 0.0
        while True:
            pause(1.0, "the vLLM server starts")
            waited += 1.0
            try:
                self.model = self.client.check_length(longest)
                return
            except RolloutServerError:
                if self.process.ended() is not None:
                    raise
                if waited > settings.timeout_seconds:
                    raise self.client.error(
                        f"was not up after rollout.timeout_seconds = {waited:g}; its log is {log}"
                    ) from None

    @contextlib.contextmanager
    def _server_explained(self) -> Iterator[None]:
        """Name how the run's own server ended, where that is what went wrong."""
        try:
            yield
        except RolloutServerError as error:
            code = None if self.process is None else self.process.ended(within=ENDS_WITHIN)
            if code is None:
                raise
            raise self.client.error(
                f"has ended ({how_it_died(code)}); its log is {self.folder / LOG}; type the command again to go on"
            ) from error


class Checksums:
    """Tensors of a folder beside a server's, iteration after iteration.

    A server may hold a tensor in another form: packed, padded, joined with others, cut up among GPUs. So only those are
    compared that have once been equal, and of the others no more is asked than to change where the folder's have.
    """

    def __init__(self) -> None:
        self.seen = False
        self._equal: set[str] = set()
        self._dtype: torch.dtype | None = None
        self._last: dict[str, tuple[str, str]] = {}
        self._now: dict[str, tuple[str, str]] = {}

    def compare(self, folder: Path, theirs: dict[str, str]) -> str:
        """The name of a tensor that is known to differ; empty where none is.

        Args:
            theirs: as `VllmClient.checksums`.
        """
        theirs = {name: value for name, value in theirs.items() if value != NOTHING}
        whole = len({name.rpartition(":")[0] for name in theirs}) == 1
        dtype = next((kind for kind in DTYPES if self._pairs(folder, theirs, kind, first=True)), self._dtype)
        if dtype is None:
            return ""
        self._dtype, self._now = dtype, self._pairs(folder, theirs, dtype)
        for name, (mine, its) in self._now.items():
            if name in self._equal:
                if mine != its:
                    return name
            elif whole and name in self._last and mine != its:
                was_mine, was_its = self._last[name]
                if (mine == was_mine) != (its == was_its):
                    return name
        return ""

    def keep(self) -> None:
        """What was compared last is the policy's."""
        self.seen, self._last = True, self._now
        self._equal |= {name for name, (mine, its) in self._now.items() if mine == its}

    def _pairs(
        self, folder: Path, theirs: dict[str, str], dtype: torch.dtype, *, first: bool = False
    ) -> dict[str, tuple[str, str]]:
        """{name: (the folder's, the server's)} of tensors that both have by the same name.

        Args:
            first: one that is equal, and no more.
        """
        by_name: dict[str, list[str]] = {}
        for name in theirs:
            by_name.setdefault(name.rpartition(":")[2], []).append(name)
        pairs = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for name in sorted(by_name.keys() & set(tensors.keys()), key=lambda name: ("norm" not in name, name)):
                    bits = tensors.get_tensor(name).to(dtype).contiguous().view(-1).view(torch.uint8).numpy()
                    mine = hashlib.sha256(bits).hexdigest()
                    pairs |= {its: (mine, theirs[its]) for its in by_name[name]}
                    if first and any(mine == theirs[its] for its in by_name[name]):
                        return pairs
        return {} if first else pairs


@torch.no_grad()
def own_logprobs(models: PolicyModels, tokens: Sequence[int]) -> Tensor:
    """(L - 1,) float64 on the CPU: log pi of tokens 1, 2, ... of a text at temperature 1, by our own forward pass."""
    ids = torch.tensor([list(tokens)], device=models.device)
    valid = torch.ones_like(ids, dtype=torch.bool)
    text = Rollouts(
        prompt_ids=ids[:, :1],
        prompt_mask=valid[:, :1],
        response_ids=ids[:, 1:],
        mask=valid[:, 1:],
        ended=valid[:, 0],
        prompts=[""],
        references=[""],
        responses=[""],
        sampler_logprobs=torch.zeros(ids[:, 1:].shape, device=models.device),
    )
    logits = models.policy_head(models.policy_hidden(models.features(text))) * models.temperature
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten().double().cpu()


def served_by(model_type: str) -> str:
    """A line on how vLLM runs such a model; empty where it does by layers of its own.

    Raises:
        RolloutServerError: it does not.
    """
    if model_type in NOT_SERVED:
        raise RolloutServerError(f"rollout.sampling: vLLM does not serve models of type {model_type}; use rollout=fast")
    if model_type in TRANSFORMERS_BACKEND:
        return f"rollout=vllm: vLLM has no layers of its own for {model_type} and runs transformers', which is slower"
    return ""
