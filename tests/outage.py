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
from tests.chaos import BUSY, SETTLE_MAX_S, Health, House, Plan, last_id_traded, play, prepare, wait_until_live
from tests.harm import saved_id

GROWTH_MAX_MB = 32.0
"""Pages that were set aside at the start are used up one by one."""
WARM_S = 20.0
STEPS = 10


def run(folder: Path, plan: Plan) -> list[str]:
    """Take the database away for `plan.seconds`, and return what is wrong afterwards."""
    house = House(prepare(folder, plan))
    health = Health(house.config)
    try:
        wait_until_live(house, health, SETTLE_MAX_S)
        house.wait(WARM_S)
        before = memory_mib(house.rooms["engine"].process.pid)
        print(f"PostgreSQL is away for {plan.seconds:.0f} s; the engine has {before:.0f} MiB", flush=True)
        house.down.add("postgres")
        house.rooms["postgres"].process.send_signal(signal.SIGKILL)
        most = before
        for step in range(1, STEPS + 1):
            house.wait(plan.seconds / STEPS)
            now = memory_mib(house.rooms["engine"].process.pid)
            most = max(most, now)
            figures = health.fresh()
            told = {name: figures.get(name) for name in ("applied", "rows_unsaved", "missing_ids")}
            print(f"{step * plan.seconds / STEPS:.0f} s: {now:.0f} MiB, {told}", flush=True)
        house.down.clear()
        began = time.monotonic()
        traded = last_id_traded(house.config)

        def has_it() -> bool:
            house.mend()
            return saved_id(house.config, BUSY) >= traded

        wait_for("the database to have what was traded meanwhile", has_it, SETTLE_MAX_S, every=0.2)
        wait_until_live(house, health, SETTLE_MAX_S)
        settle(house.config, SETTLE_MAX_S)
        print(f"all that was traded is saved, {time.monotonic() - began:.1f} s after the end", flush=True)
        found, compared = differences(house.config)
        print(f"{compared} klines compared, {len(found)} differ", flush=True)
        found += unproven(house.config)
        if house.starts["engine"]:
            found.append("the engine did not live through it")
        if most - before > GROWTH_MAX_MB:
            found.append(f"the engine has grown from {before:.0f} to {most:.0f} MiB")
        house.stop()
        return found
    finally:
        health.close()
        house.kill()


if __name__ == "__main__":
    play("outage", __doc__, run)
