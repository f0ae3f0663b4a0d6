// Whether what is shown is live, and what keeps it from that. The server says how old each word was when it spoke;
// from then on this page counts by itself, so that a server which is stopped is noticed as well.

export const HEARD_MAX_MS = 1500; // The server speaks every 500 ms.
const COUNTED_MAX_MS = 600; // So long, and not longer, this page counts by itself: a late server is late, nobody else.

const seconds = (ms) => `${Math.max(1, Math.round(ms / 1000))} s`;
const dead = (place, title, more = "") => ({ live: false, place, title, more });

/**
 * Say whether all is live; if not, where it ends (`page`, `engine` or `exchange`), and that in words.
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
 * Say whether something may be missing from a kline: ids are, or its minutes passed while nothing was heard.
 *
 * `silentSince`: the exchange's time since which nothing is heard, null while all is live; `silences`: such times that
 * are over, each [from, until]. What was traded in them shows by the next id of a symbol: in `gap`, and, once there is
 * none, in that its klines have ids or are final.
 */
export function isUnsure(row, silentSince, silences) {
  if (row.final) return false;
  if (row.gap || row.unexplained) return true;
  if (silentSince !== null && row.close_time >= silentSince) return true;
  return !row.id_count && silences.some(([from, until]) => row.open_time < until && row.close_time >= from);
}
