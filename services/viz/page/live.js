// Whether what is shown is live, and if not, why. The server sends how old each source's last message was; from then on
// this page adds the time that has passed, so that a server that has stopped is noticed as well.

export const HEARD_MAX_MS = 1500; // The server sends a status every 500 ms.
const COUNTED_MAX_MS = 600; // The page adds no more than this: if the server is late, the sources behind it are not.

const seconds = (ms) => `${Math.max(1, Math.round(ms / 1000))} s`;
const dead = (place, title, more = "") => ({ live: false, place, title, more });

/**
 * Return whether all is live; if not, up to where it is (`page`, `engine` or `exchange`), and that in words.
 *
 * `heardAgo`: ms since any message of the server, `statusAgo`: since the last status, `empty`: there are no klines.
 */
export function verdict({ connection, heardAgo, status, statusAgo, empty }) {
  if (connection !== "open") {
    return empty
      ? dead("page", "Connecting to klagg", "The page goes on by itself as soon as its server answers.")
      : dead("page", "Connection lost — trying again", "What you see is not live.");
  }
  if (heardAgo > HEARD_MAX_MS) {
    return dead("page", `No word from klagg for ${seconds(heardAgo)}`, "What you see is not live. It goes on by itself.");
  }
  if (!status) return dead("page", "");
  const [engineMax, feedMax, tradesMax] = status.limits;
  const aged = (age) => (age === null ? Infinity : age + Math.min(statusAgo, COUNTED_MAX_MS));
  if (status.engine_age === null) {
    if (!empty) return dead("engine", "History only: the engine is not running");
    const more = status.database ? `There is no history either: ${status.database}` : "Choose a symbol to see its history meanwhile.";
    return dead("engine", "Waiting for the engine", more);
  }
  if (aged(status.engine_age) > engineMax) {
    const title = `The engine has fallen silent, for ${seconds(aged(status.engine_age))}`;
    return dead("engine", title, "What you see is not live. It goes on by itself.");
  }
  if (!status.started) {
    return dead("engine", "The engine is starting", "It waits for the store and for the exchange's time.");
  }
  const trades = aged(status.trade_age);
  const silence = trades === Infinity ? "No trade has come yet" : `No trades for ${seconds(trades)}`;
  if (aged(status.feed_age) > feedMax) return dead("exchange", silence, "Ingest, which brings them, has fallen silent.");
  if (status.feed !== "connected") return dead("exchange", silence, "There is no connection to the exchange.");
  if (trades > tradesMax) return dead("exchange", silence, "The connection is there, and nothing comes over it.");
  if (status.lag) {
    return dead("engine", `The engine is ${status.lag} s behind the exchange`, "There is more to do than this machine can; nothing is lost.");
  }
  return { live: true, place: "", title: "", more: "" };
}

/**
 * Return whether a kline may lack trades: ids are missing, or its minutes passed while nothing was received.
 *
 * `silentSince`: the exchange's time since which nothing was received, null while all is live; `silences`: earlier such
 * times, each [from, until]. The next id of a symbol shows what was traded in them: by `gap`, and, once there is no gap,
 * by klines that have ids or are final.
 */
export function isUnsure(row, silentSince, silences) {
  if (row.final) return false;
  if (row.gap || row.unexplained) return true;
  if (silentSince !== null && row.close_time >= silentSince) return true;
  return !row.id_count && silences.some(([from, until]) => row.open_time < until && row.close_time >= from);
}
