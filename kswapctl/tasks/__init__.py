"""What labels mean. Each task is one file; no task knows another."""

from kswapctl.tasks.base import Task
from kswapctl.tasks.classification import Classification

TASKS: dict[str, Task] = {"classification": Classification()}

__all__ = ["TASKS", "Task"]
