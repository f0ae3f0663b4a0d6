"""An outage: PostgreSQL is away for a long time while the market goes on.

    python -m tests.outage --seconds 600

The engine's memory must not grow meanwhile, and afterwards every kline must be in the database. Prints what it
measured; ends with 1 if anything differs or memory has grown.
"""

import signal
import time
from pathlib import Path

from harness.figures import memory_mib
from harness.processes import wait_for
from harness.truth import differences, settle, unproven
from tests.chaos import BUSY, SETTLE_MAX_S, Health, Plan, System, last_id_traded, play, prepare, wait_until_live
from tests.store_faults import saved_id

GROWTH_MAX_MB = 32.0
"""Pages that were set aside at the start are used up one by one."""
WARM_S = 20.0
STEPS = 10


def run(folder: Path, plan: Plan) -> list[str]:
    """Take the database away for `plan.seconds`, and return what is wrong afterwards."""
    system = System(prepare(folder, plan))
    health = Health(system.config)
    try:
        wait_until_live(system, health, SETTLE_MAX_S)
        system.wait(WARM_S)
        before = memory_mib(system.rooms["engine"].process.pid)
        print(f"PostgreSQL is away for {plan.seconds:.0f} s; the engine has {before:.0f} MiB", flush=True)
        system.down.add("postgres")
        system.rooms["postgres"].process.send_signal(signal.SIGKILL)
        most = before
        for step in range(1, STEPS + 1):
            system.wait(plan.seconds / STEPS)
            now = memory_mib(system.rooms["engine"].process.pid)
            most = max(most, now)
            figures = health.fresh()
            progress = {name: figures.get(name) for name in ("applied", "rows_unsaved", "missing_ids")}
            print(f"{step * plan.seconds / STEPS:.0f} s: {now:.0f} MiB, {progress}", flush=True)
        system.down.clear()
        began = time.monotonic()
        traded = last_id_traded(system.config)

        def has_it() -> bool:
            system.mend()
            return saved_id(system.config, BUSY) >= traded

        wait_for("the database to have what was traded meanwhile", has_it, SETTLE_MAX_S, every=0.2)
        wait_until_live(system, health, SETTLE_MAX_S)
        settle(system.config, SETTLE_MAX_S)
        print(f"all that was traded is saved, {time.monotonic() - began:.1f} s after the end", flush=True)
        found, compared = differences(system.config)
        print(f"{compared} klines compared, {len(found)} differ", flush=True)
        found += unproven(system.config)
        if system.starts["engine"]:
            found.append("the engine did not live through it")
        if most - before > GROWTH_MAX_MB:
            found.append(f"the engine has grown from {before:.0f} to {most:.0f} MiB")
        system.stop()
        return found
    finally:
        health.close()
        system.kill()


if __name__ == "__main__":
    play("outage", __doc__, run)
