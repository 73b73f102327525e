"""hardware.sharding=fsdp: weights, gradients and optimizer states cut up among the ranks (FSDP2's `fully_shard`).

Each block, and embeddings and language head where they do not share a tensor, is gathered for its own forward and
backward pass alone. What is left (norms outside the blocks, tied embeddings, the value head) every rank holds whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from rlhf.config import HardwareConfig, TrainableConfig
from rlhf.distributed import count, full_tensor, is_sharded
from rlhf.models.families import BLOCKS, attribute
from rlhf.models.policy import Parameters, PolicyModels


def shard(models: PolicyModels) -> None:
    """Cut up policy, reference and value network of mode all, in place; they keep their names."""
    networks = models.networks
    parts = [networks.policy, networks.reference, *([] if networks.value is None else [networks.value])]
    _shard([part.base for part in parts], [models.language_head, networks.reference_head])
    new = {f"policy.{name}": parameter for name, parameter in models.model.named_parameters()}
    if networks.value is not None:
        new |= {f"value.{name}": parameter for name, parameter in networks.value.base.named_parameters()}
    models.policy_parameters = _renewed(models.policy_parameters, new)
    models.value_parameters = _renewed(models.value_parameters, new)


def sharded(
    parameters: Parameters, model: PreTrainedModel, train: TrainableConfig, hardware: HardwareConfig
) -> Parameters:
    """The trained parameters of a stage before RL, the model cut up in place where all of it is trained."""
    if hardware.sharding != "fsdp" or train.mode != "all":
        return parameters
    head = model.get_output_embeddings()
    # A reward model's head is one row, and stays whole.
    _shard([model.base_model], [head] if isinstance(head, nn.Module) else [])
    return _renewed(parameters, dict(model.named_parameters()))


def _shard(bases: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
    mesh = init_device_mesh(next(bases[0].parameters()).device.type, (count(),))
    tied = [head.weight for head in heads]
    in_bases = {parameter for base in bases for parameter in base.parameters()}
    untied = [head for head in heads if head.weight not in in_bases]
    for base in bases:
        for block in getattr(base, attribute(base, BLOCKS, "hardware.sharding=fsdp", "use none")):
            _shard_unit(block, mesh)
        embeddings = base.get_input_embeddings()  # type: ignore[operator]
        if not any(embeddings.weight is weight for weight in tied):
            _shard_unit(embeddings, mesh)
    for head in untied:
        _shard_unit(head, mesh)


def _shard_unit(module: nn.Module, mesh: DeviceMesh) -> None:
    unit = fully_shard(module, mesh=mesh, reshard_after_forward=True)
    assert isinstance(unit, FSDPModule)
    # The losses divide by the tokens of all ranks: gradients are to be added up.
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)


def _renewed(before: Parameters, new: Mapping[str, nn.Parameter]) -> Parameters:
    """The same names with the tensors that have taken their places; the value head has stayed."""
    return {name: new.get(name, parameter) for name, parameter in before.items()}


def whole_weights(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """A sharded model's weights for `save_pretrained`; None where it holds them itself."""
    if not is_sharded(model):
        return None
    return {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}
