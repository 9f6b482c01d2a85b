"""Random labels: the forgotten images are taught the names of other classes.

Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020; as in Fan et al., ICLR 2024, the retained are
rehearsed beside it. Labels are drawn anew each time, from the classes that stay.
"""

from dataclasses import dataclass

from kswapctl.methods.plain import Plain


@dataclass(frozen=True)
class Forget(Plain):
    """Cross-entropy with random other labels on what is forgotten, and with the right ones on what is retained."""

    kind = "forget"
    source = "Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020 (its random-label baseline)"
