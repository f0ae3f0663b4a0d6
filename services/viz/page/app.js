// The page: which symbol and interval are shown, what the feed says of them, and what is missing.
//
// All text goes through textContent or attributes: the names of symbols come from outside.

import { KlineChart } from "./chart.js";
import { Feed } from "./feed.js";
import { change, clock, compact, count, countdown, grouped, opened, percent, tone } from "./format.js";
import { verdict } from "./live.js";
import { SymbolList } from "./symbols.js";

const INTERVALS = ["1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M"];
const OLDER_ROWS = 1000;
const ROWS_MAX = 30_000; // Klines that one chart holds; scrolling back ends there.
const RETRY_MS = 3000;
const LOOK_MS = 100; // How often the page checks how old its data is.

const element = (id) => document.getElementById(id);

const state = {
  symbol: "",
  interval: "1m",
  connection: "connecting",
  heardAt: 0,
  status: null,
  statusAt: 0,
  verdict: { live: false, place: "page", title: "", more: "" },
  listed: false,
  answered: false,
  saved: true,
  exhausted: false,
  fetching: null,
  retryAt: 0,
  errors: 0,
};

const chart = new KlineChart(element("chart"), {
  onHover: () => showLegend(),
  onEdge: () => fetchOlder(),
  onScroll: (away) => (element("latest").hidden = !away),
});
const list = new SymbolList({
  list: element("list"),
  search: element("search"),
  sorts: document.querySelector(".sorts"),
  count: element("count"),
  onChoose: (symbol) => {
    closeMenu();
    choose(symbol, state.interval);
  },
});
const buttons = new Map(INTERVALS.map((interval) => [interval, intervalButton(interval)]));
const feed = new Feed(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`, receive, connected);

/** For the console. */
window.klagg = { state, chart, list };

// The chosen symbol and interval.

function choose(symbol, interval) {
  if (symbol === state.symbol && interval === state.interval) return;
  const another = symbol !== state.symbol;
  Object.assign(state, { symbol, interval, answered: false, exhausted: false, retryAt: 0 });
  state.fetching?.abort();
  state.fetching = null;
  chart.clear();
  element("latest").hidden = true;
  for (const [name, button] of buttons) button.setAttribute("aria-pressed", String(name === interval));
  buttons.get(interval).scrollIntoView({ block: "nearest", inline: "nearest" });
  element("symbol").textContent = symbol;
  list.choose(symbol);
  const hash = `#${encodeURIComponent(symbol)}/${interval}`;
  if (location.hash !== hash) location.hash = hash;
  feed.watch(symbol, interval);
  if (another) showTicker();
  showLegend();
  look();
}

function fromHash() {
  const [symbol, interval] = location.hash.slice(1).split("/");
  try {
    return { symbol: decodeURIComponent(symbol ?? ""), interval: INTERVALS.includes(interval) ? interval : "1m" };
  } catch {
    return { symbol: "", interval: "1m" }; // Not what this page writes.
  }
}

function intervalButton(interval) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = interval;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    if (state.symbol) choose(state.symbol, interval);
    else state.interval = interval;
  });
  element("intervals").append(button);
  return button;
}

// Messages of the server.

function connected(connection) {
  state.connection = connection;
  // It may be another server: the last status of the former one does not count.
  if (connection === "open") Object.assign(state, { status: null, heardAt: performance.now() });
  look();
}

function receive(message) {
  state.heardAt = performance.now();
  switch (message.kind) {
    case "tickers":
      takeTickers(message);
      break;
    case "history":
      if (message.symbol === state.symbol && message.interval === state.interval) takeHistory(message);
      break;
    case "kline":
      if (message.symbol === state.symbol && message.interval === state.interval) takeKline(message.row);
      break;
    case "status":
      Object.assign(state, { status: message, statusAt: state.heardAt });
      look();
      break;
    case "error":
      state.errors += 1;
      console.warn(`klagg: ${message.error}`);
      break;
  }
}

function takeTickers(message) {
  state.listed = message.listed;
  list.update(message.symbols, message.whole);
  if (!state.symbol) {
    const asked = fromHash(); // It may have changed a moment ago.
    const symbol = asked.symbol || list.busiest();
    if (symbol) choose(symbol, asked.symbol ? asked.interval : state.interval);
  } else if (message.whole || state.symbol in message.symbols) {
    showTicker();
    showNotice();
  }
}

function takeHistory(message) {
  state.answered = true;
  state.saved = message.saved;
  if (!chart.merge(message.rows)) {
    // An empty chart, or one whose rows end before these begin: older rows are fetched again when they are scrolled to.
    state.exhausted = false;
    if (message.rows.length || !chart.rows.length) chart.replace(message.rows);
  }
  showTicker();
  showLegend();
  showNotice();
}

function takeKline(row) {
  chart.update(row);
  if (row === chart.last()) showTicker();
  if (!chart.hovered() || row.open_time === chart.hovered().open_time) showLegend();
  if (!element("notice").hidden) showNotice();
}

async function fetchOlder() {
  const oldest = chart.rows[0];
  if (!oldest || !state.saved || state.fetching || state.exhausted || performance.now() < state.retryAt) return;
  if (chart.rows.length >= ROWS_MAX) return;
  const asked = (state.fetching = new AbortController());
  const query = new URLSearchParams({
    symbol: state.symbol, interval: state.interval, end: oldest.open_time - 1, limit: OLDER_ROWS,
  });
  try {
    const response = await fetch(`/api/history?${query}`, { signal: asked.signal });
    if (!response.ok) throw new Error((await response.json()).error);
    const rows = await response.json();
    if (asked.signal.aborted) return;
    state.exhausted = rows.length < OLDER_ROWS;
    if (rows.length && chart.rows[0] === oldest) chart.prepend(rows);
  } catch (error) {
    if (asked.signal.aborted) return;
    state.retryAt = performance.now() + RETRY_MS;
    console.warn(`klagg: no older klines for now: ${error.message}`);
  } finally {
    if (state.fetching === asked) state.fetching = null;
  }
}

// Texts and figures.

function showTicker() {
  const ticker = list.tickers.get(state.symbol);
  const last = lastPrice();
  const moved = ticker ? change(ticker.open, last) : null;
  write("last", last && grouped(last));
  element("last").className = `last ${tone(moved)}`;
  write("change", percent(moved));
  element("change").className = tone(moved);
  write("high", ticker?.high ? grouped(ticker.high) : "—");
  write("low", ticker?.low ? grouped(ticker.low) : "—");
  write("volume", compact(ticker?.volume ?? ""));
  write("turnover", compact(ticker?.quoteVolume ?? ""));
  showPrice();
  document.title = state.symbol ? `${last && `${grouped(last)} · `}${state.symbol} · klagg` : "klagg";
}

/** The market's last price; the open kline has it first, the list gets it twice a second. */
function lastPrice() {
  const row = chart.last();
  const ticker = list.tickers.get(state.symbol);
  return row && (!row.closed || !ticker?.last) ? row.close : (ticker?.last ?? "");
}

/** Draw the market's last price, wherever the chart is scrolled to, with what the newest kline has left. */
function showPrice() {
  const row = chart.last();
  const time = exchangeNow();
  const left = row && time !== null && !row.closed ? countdown(row.close_time + 1 - time) : "";
  chart.showPrice(row ? lastPrice() : "", row ? tone(change(row.open, row.close)) : "", left, state.verdict.live);
}

function showLegend() {
  const row = chart.hovered() ?? chart.last();
  write("legend-name", state.symbol ? `${state.symbol} · ${state.interval}` : "");
  element("legend").dataset.empty = row ? "" : "yes";
  if (!row) return;
  const moved = change(row.open, row.close);
  for (const [id, value] of [["o", row.open], ["h", row.high], ["l", row.low], ["c", row.close]]) {
    write(id, grouped(value));
    element(id).className = tone(moved);
  }
  write("move", percent(moved));
  element("move").className = tone(moved);
  write("v", compact(row.volume));
  write("q", compact(row.quote_volume));
  write("n", count(row.trade_count));
  const bought = Number(row.volume) > 0 ? (Number(row.taker_buy_volume) / Number(row.volume)) * 100 : null;
  write("t", bought === null ? "—" : `${bought.toFixed(0)}%`);
  write("legend-time", opened(row.open_time, state.interval));
  element("legend-time").dateTime = new Date(row.open_time).toISOString();
  showMarks(row);
  const spoken = `${state.symbol} ${state.interval}, ${chart.rows.length} klines, last close ${chart.last().close}`;
  if (element("chart").getAttribute("aria-label") !== spoken) element("chart").setAttribute("aria-label", spoken);
}

const SOURCES = {
  trades: ["from trades", "Made of single trades, each applied exactly once"],
  exchange: ["exchange's own", "Taken over from the exchange's own kline"],
  both: ["trades + exchange's own", "Made of trades and of the exchange's own kline"],
};

function showMarks(row) {
  const corrected = row.revision ? ` · revision ${row.revision}` : "";
  if (row.final) {
    mark("mark-state", `final${corrected}`, "final", "Every trade before its end was applied: it changes no more");
  } else if (row.closed) {
    mark("mark-state", `closed${corrected}`, "closed", "The exchange's clock has passed its end; the next trade will prove it");
  } else {
    const now = exchangeNow();
    const left = now === null ? "" : ` · closes in ${countdown(row.close_time + 1 - now)}`;
    mark("mark-state", `open${left}${corrected}`, now === null ? "stale" : "open",
      now === null ? "Not live: trades of its may be missing" : "Trades are still coming in");
  }
  const [word, meaning] = SOURCES[row.source] ?? [row.source, ""];
  mark("mark-source", word, row.source, meaning);
  const range = row.last_id - row.first_id + 1;
  const lacking = range - row.id_count;
  if (row.gap && !row.final) mark("mark-proof", "trades missing", "broken", "They are being fetched");
  else if (row.saturated) {
    mark("mark-proof", "volumes are too large: not final", "broken",
      "More was traded than klagg's numbers hold: these volumes are the true ones, or the most that fits");
  } else if (row.unexplained) {
    mark("mark-proof", `${lacking > 0 ? `${count(lacking)} ` : ""}trades unexplained: not final`, "broken",
      "Ids were left out by whoever was asked for them; the exchange's own kline will show whether they carry trades");
  } else if (row.audited) {
    mark("mark-proof", "proven by the exchange's own kline", "whole", "Ids are unexplained, and it has the same trades and volumes");
  } else if (!row.final && !state.verdict.live) mark("mark-proof", "", "", "");
  else if (row.source !== "trades" || !row.id_count) mark("mark-proof", "", "", "");
  else if (row.id_count === range) mark("mark-proof", "no trade missing", "whole", `${count(range)} ids, all of them`);
  else mark("mark-proof", `${count(lacking)} ids missing`, "broken", "They are being fetched");
}

function mark(id, text, kind, meaning) {
  write(id, text);
  const target = element(id);
  target.dataset.kind = kind;
  target.title = meaning;
  target.hidden = !text;
}

function exchangeNow() {
  const { status, statusAt, verdict } = state;
  return verdict.live && status.time ? status.time + performance.now() - statusAt : null;
}

/** Check the ages: what was live a moment ago may not be any more, and no message says so. */
function look() {
  const now = performance.now();
  state.verdict = verdict({
    connection: state.connection,
    heardAgo: now - state.heardAt,
    status: state.status,
    statusAgo: now - state.statusAt,
    empty: !chart.rows.length,
  });
  const { live } = state.verdict;
  document.body.classList.toggle("stale", !live);
  chart.setSilence(live || !state.status ? null : state.status.trade_time, state.status?.silences ?? []);
  showLights();
  showNotice();
  const time = exchangeNow();
  write("clock", time === null ? "" : clock(time));
  const row = chart.hovered() ?? chart.last();
  if (row) showMarks(row);
  showPrice();
}

function showLights() {
  const { verdict: { live, place, title, more }, status } = state;
  const words = [title, more].filter(Boolean).join(". ");
  const known = state.connection === "open" && status && place !== "page";
  // Nothing is known of what comes after the part that is not live.
  light("page", place === "page" ? "bad" : "good", place === "page" ? words || "Connecting" : "This page is connected");
  light("engine", !known ? "wait" : place !== "engine" ? "good" : status.engine_age === null || status.lag || !status.started ? "wait" : "bad",
    !known ? "Not known" : place === "engine" ? words : "The engine is live");
  light("exchange", live ? "good" : place === "exchange" ? "bad" : "wait",
    live ? "Trades are coming in" : place === "exchange" ? words : "Not known");
  const unsaved = known && place !== "engine" ? status.unsaved : 0;
  light("database", !known ? "wait" : status.database || unsaved ? "bad" : place === "engine" ? "wait" : "good",
    !known ? "Not known" : status.database ? `No history: ${status.database}`
      : unsaved ? `Nothing was saved for ${unsaved} s` : place === "engine" ? "History is there; whether klines are saved is not known" : "History is there");
  showProof(known && place !== "engine" ? status.proof : null, live);
  const progress = live ? status.history : null;
  element("history").hidden = !progress;
  if (progress) {
    const [done, all, minutes] = progress;
    write("history", `History: ${done} of ${all} symbols, ${minutes} min left`);
  }
}

/** Say whether every trade is there, and what comparing with the exchange's own klines has shown. */
function showProof(proof, live) {
  if (!proof) {
    light("proof", "wait", "Not known");
    return;
  }
  const [missing, unexplained, equal, aggregates, wrong] = proof;
  const words = [
    missing ? `${count(missing)} trades are missing and being fetched` : live ? "No trade is missing" : "No trade is known to be missing",
  ];
  if (unexplained) words.push(`${count(unexplained)} trades unexplained: not final`);
  const compared = equal + aggregates + wrong;
  words.push(compared
    ? `${count(compared)} minutes compared with the exchange's own: ${count(equal)} equal, ` +
      `${count(aggregates)} differ as aggregate trades do, ${count(wrong)} do not match`
    : "nothing was compared with the exchange's own klines yet");
  light("proof", wrong ? "bad" : missing || unexplained || !live ? "wait" : "good", words.join("; "));
}

function light(name, kind, meaning) {
  const item = element(`state-${name}`);
  if (item.dataset.state === kind && item.title === meaning) return;
  item.dataset.state = kind;
  item.title = meaning;
  item.setAttribute("aria-label", `${name}: ${meaning}`);
}

/** Say what is missing, largest thing first; say nothing while klines are on their way. */
function showNotice() {
  let { title, more } = state.verdict;
  const { database, unsaved } = state.status ?? {};
  if (!title && state.status && state.answered && !chart.rows.length) {
    const ticker = list.tickers.get(state.symbol);
    if (ticker?.waiting) [title, more] = [`${state.symbol} waits for its history`, "It is fetched next."];
    else if (ticker) [title, more] = [`No klines of ${state.symbol} ${state.interval} yet`, "They appear with the first trade."];
    else if (!state.listed) [title, more] = [`No klines of ${state.symbol} yet`, "Which symbols trade is not known yet."];
    else [title, more] = [`There is no symbol ${state.symbol} here`, "Choose another from the list."];
  } else if (!title && database) {
    [title, more] = ["Live only: no history", database];
  } else if (!title && unsaved) {
    [title, more] = [`Nothing was saved for ${unsaved} s`, "What you see is live, and kept in memory only."];
  }
  const notice = element("notice");
  notice.hidden = !title;
  notice.dataset.size = chart.rows.length ? "small" : "large";
  if (notice.dataset.text === title + more) return;
  notice.dataset.text = title + more;
  const head = document.createElement("strong");
  head.textContent = title;
  const tail = document.createElement("span");
  tail.textContent = more;
  notice.replaceChildren(head, tail);
}

function write(id, text) {
  const target = element(id);
  if (target.textContent !== text) target.textContent = text;
}

function closeMenu() {
  document.body.classList.remove("listed");
  element("menu").setAttribute("aria-expanded", "false");
}

// Input.

addEventListener("hashchange", () => {
  const { symbol, interval } = fromHash();
  if (symbol) choose(symbol, interval);
});
addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.body.classList.add("listed");
    element("search").focus();
    element("search").select();
  } else if (event.key === "Escape") {
    closeMenu();
  }
});
element("menu").addEventListener("click", () => {
  const listed = document.body.classList.toggle("listed");
  element("menu").setAttribute("aria-expanded", String(listed));
  if (listed) element("search").focus();
});
element("latest").addEventListener("click", () => chart.showLatest());
setInterval(look, LOOK_MS);

const start = fromHash();
state.interval = start.interval;
buttons.get(start.interval).setAttribute("aria-pressed", "true");
if (start.symbol) choose(start.symbol, start.interval);
