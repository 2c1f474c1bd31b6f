"""What a run would be like, before anybody rents machines for it: `simulate`.

```python
from areal_core.simulation import Scenario, simulate

print(simulate(Scenario(workers=8, servers=4, server_tokens_per_s=3000, train_s=20)))
```

Which rollout starts, which worker plays it, which server it asks, what is too old and what is run again is
decided by the library's own code; the clock is virtual, so that an hour takes seconds. Workers, servers, the
trainer and their failures are models of a few numbers each, which `Scenario` names. What the library costs is
in `Costs`, measured by `calibrate`. So it answers how many rollouts to have in flight, what bound on
staleness and how many servers to take, and it shows from how many workers on the driver has no time for more.

On the command line it is ``python -m areal_core.simulation --workers 8 --servers 4``; ``--help`` says the
rest. `draw` needs matplotlib, which is in the extra ``demo``.
"""

from __future__ import annotations

import sys

from areal_core._simulation.calibration import calibrate
from areal_core._simulation.command import main
from areal_core._simulation.forecast import Forecast
from areal_core._simulation.growing import grow, vary
from areal_core._simulation.plot import draw
from areal_core._simulation.scenario import Costs, Scenario
from areal_core._simulation.world import simulate

__all__ = ["Costs", "Forecast", "Scenario", "calibrate", "draw", "grow", "main", "simulate", "vary"]

if __name__ == "__main__":
    sys.exit(main())
