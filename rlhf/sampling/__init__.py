"""Sampling responses token by token: policy + prompts + uniforms -> tokens.

| module | |
| --- | --- |
| plain.py | one token a row from logits and a uniform; rollout=plain: the model's own forward pass, any architecture |
| fast.py | rollout=fast: known layers over a static key-value cache; finished rows make room; on a GPU, CUDA graphs |

The sampler is unmodified on purpose: temperature alone, no top-k, no top-p, no minimal length, no penalty. Any of
these makes log pi_theta another distribution than the one that was sampled, and the KL negative.
"""
