// The list of symbols: search, order, keyboard. Only the rows in view exist, so a thousand symbols cost no more than ten.

import { change, compact, grouped, percent, tone } from "./format.js";

const ROW_PX = 46;
const SPARE_ROWS = 4;
const REORDER_MS = 10_000; // Rows that jump cannot be clicked: the order follows the market only this often.

const still = matchMedia("(prefers-reduced-motion: reduce)");

const ORDERS = {
  name: (a, b) => (a.symbol < b.symbol ? -1 : 1),
  volume: (a, b) => b.turnover - a.turnover || ORDERS.name(a, b),
  change: (a, b) => (b.change ?? -Infinity) - (a.change ?? -Infinity) || ORDERS.name(a, b),
};

export class SymbolList {
  /** Symbol to {symbol, last, open, high, low, volume, quoteVolume, active, waiting, change, turnover}. */
  tickers = new Map();
  chosen = "";
  #shown = [];
  #active = -1;
  #order = "volume";
  #reversed = false;
  #orderedAt = 0;
  #hovered = false;
  #rows = [];

  constructor({ list, search, sorts, count, onChoose }) {
    Object.assign(this, { list, search, sorts, count, onChoose });
    this.space = document.createElement("div");
    this.space.className = "space";
    this.space.setAttribute("role", "presentation");
    list.append(this.space);
    list.addEventListener("scroll", () => this.#render(), { passive: true });
    list.addEventListener("click", (event) => this.#click(event));
    list.addEventListener("pointerenter", () => (this.#hovered = true));
    list.addEventListener("pointerleave", () => (this.#hovered = false));
    search.addEventListener("input", () => this.#arrange(true));
    for (const target of [search, list]) target.addEventListener("keydown", (event) => this.#key(event));
    sorts.addEventListener("click", (event) => this.#sort(event.target.closest("button")?.dataset.sort));
    new ResizeObserver(() => this.#render()).observe(list);
    this.#sort("volume");
  }

  /** Take figures: all of them, or those that changed. */
  update(symbols, whole) {
    if (whole) {
      for (const symbol of this.tickers.keys()) if (!Object.hasOwn(symbols, symbol)) this.tickers.delete(symbol);
    }
    let arrivals = whole;
    for (const [symbol, entry] of Object.entries(symbols)) {
      const [last, open, high, low, volume, quoteVolume, active, waiting] = entry;
      arrivals ||= !this.tickers.has(symbol);
      this.tickers.set(symbol, {
        symbol, last, open, high, low, volume, quoteVolume, active, waiting,
        change: change(open, last),
        turnover: Number(quoteVolume),
      });
    }
    const stale = this.#order !== "name" && performance.now() - this.#orderedAt > REORDER_MS && !this.#hovered;
    if (arrivals || stale) this.#arrange(false);
    else this.#render();
  }

  choose(symbol) {
    this.chosen = symbol;
    this.#render();
  }

  /** Return the symbol at the top of the market: the one with the highest turnover. */
  busiest() {
    let best = null;
    for (const ticker of this.tickers.values()) if (!best || ORDERS.volume(ticker, best) < 0) best = ticker;
    return best?.symbol;
  }

  #sort(order) {
    if (!order) return;
    this.#reversed = order === this.#order && this.#orderedAt > 0 ? !this.#reversed : false;
    this.#order = order;
    for (const button of this.sorts.querySelectorAll("button")) {
      const current = button.dataset.sort === order;
      button.setAttribute("aria-pressed", String(current));
      button.dataset.direction = current ? ((order === "name") !== this.#reversed ? "up" : "down") : "";
    }
    this.list.scrollTop = 0;
    this.#arrange(false);
  }

  #arrange(searched) {
    const wanted = this.search.value.trim().toUpperCase();
    const before = this.#shown[this.#active]?.symbol;
    this.#shown = [...this.tickers.values()]
      .filter((ticker) => ticker.symbol.toUpperCase().includes(wanted))
      .sort(ORDERS[this.#order]);
    if (this.#reversed) this.#shown.reverse();
    if (wanted) {
      // What begins with the searched text comes before what merely contains it.
      const begins = (ticker) => ticker.symbol.toUpperCase().startsWith(wanted);
      this.#shown = [...this.#shown.filter(begins), ...this.#shown.filter((ticker) => !begins(ticker))];
    }
    this.#orderedAt = performance.now();
    if (searched) {
      this.#active = wanted && this.#shown.length ? 0 : -1;
      this.list.scrollTop = 0;
    } else {
      this.#active = this.#shown.findIndex((ticker) => ticker.symbol === before);
    }
    this.space.style.height = `${this.#shown.length * ROW_PX}px`;
    const all = this.tickers.size;
    this.count.textContent = this.#shown.length === all ? `${all} symbols` : `${this.#shown.length} of ${all} symbols`;
    this.#render();
  }

  #render() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_PX) - SPARE_ROWS / 2);
    const size = Math.ceil(this.list.clientHeight / ROW_PX) + SPARE_ROWS;
    while (this.#rows.length < size) this.#rows.push(this.#newRow());
    this.#rows.forEach((row, place) => {
      // A row keeps its symbol while the list scrolls: index modulo the number of rows.
      const index = first + ((place - (first % this.#rows.length) + this.#rows.length) % this.#rows.length);
      this.#fill(row, index, this.#shown[index]);
    });
    const active = this.#active >= 0 ? `option-${this.#active}` : "";
    for (const element of [this.search, this.list]) element.setAttribute("aria-activedescendant", active);
  }

  #newRow() {
    const row = document.createElement("div");
    row.className = "option";
    row.setAttribute("role", "option");
    const cells = {};
    for (const name of ["name", "last", "turnover", "change"]) {
      cells[name] = row.appendChild(document.createElement("span"));
      cells[name].className = name;
    }
    this.space.append(row);
    return { element: row, cells, symbol: "", last: "", index: -1 };
  }

  #fill(row, index, ticker) {
    const { element, cells } = row;
    element.hidden = !ticker;
    if (!ticker) {
      row.symbol = "";
      element.removeAttribute("id");
      row.index = -1;
      return;
    }
    // The tickers are the stored ones, so that a row always shows the newest.
    ticker = this.tickers.get(ticker.symbol) ?? ticker;
    if (row.index !== index) {
      row.index = index;
      element.id = `option-${index}`;
      element.style.transform = `translateY(${index * ROW_PX}px)`;
      element.setAttribute("aria-posinset", index + 1);
    }
    element.setAttribute("aria-setsize", this.#shown.length);
    element.setAttribute("aria-selected", String(ticker.symbol === this.chosen));
    element.classList.toggle("active", index === this.#active);
    element.classList.toggle("halted", !ticker.active);
    element.classList.toggle("waiting", ticker.waiting);
    if (row.symbol === ticker.symbol && row.last !== ticker.last && !still.matches) {
      const color = Number(ticker.last) > Number(row.last) ? "var(--up)" : "var(--down)";
      cells.last.animate([{ color }, { color: "var(--text)" }], 700);
    }
    row.symbol = ticker.symbol;
    row.last = ticker.last;
    write(cells.name, ticker.symbol);
    write(cells.last, ticker.last ? grouped(ticker.last) : "—");
    write(cells.turnover, ticker.quoteVolume ? compact(ticker.quoteVolume) : "");
    write(cells.change, ticker.change === null ? "" : percent(ticker.change));
    cells.change.className = `change ${tone(ticker.change)}`;
    element.title = ticker.waiting ? "Waits for its history" : ticker.active ? "" : "Does not trade at present";
  }

  #click(event) {
    const index = Number(event.target.closest(".option")?.id.slice("option-".length) ?? NaN);
    if (index >= 0) this.#pick(index);
  }

  #pick(index) {
    const ticker = this.#shown[index];
    if (!ticker) return;
    this.#active = index;
    this.onChoose(ticker.symbol);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW_PX) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) {
      event.preventDefault();
      const from = this.#active < 0 && event.key === "ArrowUp" ? this.#shown.length : this.#active;
      this.#active = Math.max(0, Math.min(this.#shown.length - 1, from + steps[event.key]));
      const top = this.#active * ROW_PX;
      if (top < this.list.scrollTop) this.list.scrollTop = top;
      const lowest = top + ROW_PX - this.list.clientHeight;
      if (lowest > this.list.scrollTop) this.list.scrollTop = lowest;
      this.#render();
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.#pick(Math.max(0, this.#active));
    } else if (event.key === "Escape") {
      if (this.search.value) {
        this.search.value = "";
        this.#arrange(true);
      } else {
        event.target.blur();
      }
    }
  }
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
