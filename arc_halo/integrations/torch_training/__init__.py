"""Training loops of torch: their whole state as a checkpoint, and back, bit for bit; the extra ``torch``.

State
    What a loop needs to go on as if it had never stopped: module, optimizer, schedule, scaler, random states, data
    position.
Name
    Of a parameter or buffer in its module's ``state_dict``; whatever belongs to a parameter stands under its name.
Alias
    A further name of what is tied, which is stored under its first name alone.
Position
    Where a loader stands: how many batches of an epoch were taken, and the random states that the epoch began with.
"""

from arc_halo.integrations.torch_training.capturing import capture_state, restore_optimizer, restore_state
from arc_halo.integrations.torch_training.loader import ResumableLoader
from arc_halo.integrations.torch_training.rng import capture_rng, restore_rng

__all__ = [
    "ResumableLoader",
    "capture_rng",
    "capture_state",
    "restore_optimizer",
    "restore_rng",
    "restore_state",
]
