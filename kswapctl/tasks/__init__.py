"""What labels mean. Each task is one file; no task knows another."""

from kswapctl.tasks.base import Alignment, Items, Marks, Measured, Task, flatten
from kswapctl.tasks.classification import Classification
from kswapctl.tasks.detection import Detection
from kswapctl.tasks.segmentation import Segmentation
from kswapctl.tasks.shown import Shown

TASKS: dict[str, Task] = {t.name: t for t in (Classification(), Detection(), Segmentation())}

__all__ = ["TASKS", "Alignment", "Items", "Marks", "Measured", "Shown", "Task", "flatten"]
