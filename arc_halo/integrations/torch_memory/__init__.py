"""Memory of a torch model's activations: measured by layer, planned, and saved; the extra ``torch``.

Activation
    What a forward pass keeps for its backward pass.
Strategy
    How a layer keeps its activations: all of them (``none``), its input alone (``full``), what is dear to compute
    (``selective``), or in the host's memory (``offload``).
Cost
    What a strategy takes: bytes kept, bytes more during the layer's backward pass, seconds of what is done again.
Peak
    Bytes of tensors alive at the most in a step, without parameters, their gradients and the optimizer.
Plan
    A strategy for each layer, with the peak that was measured under it.
"""

from arc_halo.integrations.torch_memory.measuring import (
    LayerMemory,
    MemoryPlan,
    measure_gradient_checkpointing,
    record_gradient_checkpoints,
)
from arc_halo.integrations.torch_memory.planning import Cost, choose_strategies
from arc_halo.integrations.torch_memory.strategies import STRATEGIES, Strategy, strategies_applied

__all__ = [
    "STRATEGIES",
    "Cost",
    "LayerMemory",
    "MemoryPlan",
    "Strategy",
    "choose_strategies",
    "measure_gradient_checkpointing",
    "record_gradient_checkpoints",
    "strategies_applied",
]
