"""Lets accelerate shard a model (FSDP2) over processes on a CPU, which it does on accelerators only.

Everything else is accelerate's own and PyTorch's: the plugin, the wrapping, the optimizer's switch to sharded
parameters, saving and loading. gloo carries it.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate.state import AcceleratorState, DistributedType

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": os.environ.get("RAM_EFFICIENT", "false"),
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def allow() -> None:
    """Count a CPU among the devices to shard over."""
    begin = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None and self.distributed_type is DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def switch(on: bool) -> None:
    """Ask for FSDP2, or no longer, as ``accelerate launch`` does."""
    for name, value in ENVIRONMENT.items():
        if on:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)


if __name__ == "__main__":  # a command, as ``accelerate launch -m ngdiff`` starts it on GPUs
    allow()
    switch(True)
    from ngdiff.cli import main

    main()
